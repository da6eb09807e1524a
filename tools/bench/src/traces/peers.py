"""libCacheSim's algorithms on a stream of block accesses.

peers.py STREAM SLOTS,... ALGORITHM,...  STREAM has a block number and a length in bytes, both 32 bits, for each read.
Prints a line for each algorithm and size: algorithm, slots, hits, bytes of these, blocks that came in.
"""
import sys
from array import array
import libcachesim

stream = array("I")
stream.frombytes(open(sys.argv[1], "rb").read())
blocks, lengths = stream[0::2].tolist(), stream[1::2].tolist()
for algorithm in sys.argv[3].split(","):
    for slots in map(int, sys.argv[2].split(",")):
        try:
            cache = getattr(libcachesim, algorithm)(slots, hashpower=20)
            request = libcachesim.Request()
            request.obj_size = 1
            hits = hit_bytes = 0
            get = cache.get
            for now, (block, length) in enumerate(zip(blocks, lengths)):
                request.obj_id = block
                request.clock_time = now
                if get(request):
                    hits += 1
                    hit_bytes += length
        except Exception as error:
            print(f"{algorithm} with {slots} slots: {error}", file=sys.stderr)
            continue
        print(algorithm, slots, hits, hit_bytes, len(blocks) - hits, flush=True)
