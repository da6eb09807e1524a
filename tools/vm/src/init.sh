#!/bin/sh
# Process 1 of the guest. It prepares what programs expect of a system, runs /etc/guest/command and reports on the
# three virtio consoles: hvc0 and hvc1 are the command's output and errors, hvc2 is the word to the host.
# The marker in /etc/guest/marker, sent last on each, tells the host that nothing of it is still on its way.

export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/usr/libexec/busybox
export HOME=/root TERM=linux LC_ALL=C

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mkdir -p /run/lock
ln -s /proc/mounts /etc/mtab
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
ip link set lo up
for module in $(cat /etc/guest/modules); do modprobe "$module"; done
[ ! -d /sysroot ] || exec /bin/sh /etc/guest/system

exec 5<>/dev/hvc2 6<>/dev/hvc0 7<>/dev/hvc1
# A console forgets its settings when no process has it open.
for console in 5 6 7; do stty raw -echo <&$console; done
# Pipes, not consoles, are the command's output: so it is no terminal, and /dev/stdout can be opened.
mkfifo /run/guest-out /run/guest-err
exec 3<>/run/guest-out 4<>/run/guest-err
cat <&3 >&6 &
cat <&4 >&7 &
exec 6>&- 7>&-

echo ready >&5
cd /root
/bin/sh /etc/guest/command </dev/null >&3 2>&4 3>&- 4>&- 5>&-
echo "exit $?" >&5

marker=$(cat /etc/guest/marker)
printf '%s' "$marker" >&3
printf '%s' "$marker" >&4
echo "<0>$marker" >/dev/kmsg
# The host ends the machine.
while :; do sleep 60; done
