//! Memory for direct I/O.

/// Memory aligned for direct I/O.
#[derive(Debug)]
pub struct Aligned {
    memory: Vec<u8>,
    skip: usize,
}

impl Aligned {
    const ALIGNMENT: usize = 4096;

    /// At least `length` bytes.
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + Self::ALIGNMENT];
        let skip = memory.as_ptr().align_offset(Self::ALIGNMENT);
        Self { memory, skip }
    }

    /// Its first `length` bytes.
    pub fn first(&mut self, length: usize) -> &mut [u8] {
        &mut self.memory[self.skip..][..length]
    }
}
