//! Memory that ops reuse from call to call, so that a step allocates nothing once warm.

use crate::cpu::QueryRow;

/// A cache line, bytes.
const LINE: usize = 64;

/// Zeroed bytes that start on a 64-byte boundary.
///
/// Plain bytes with some to spare: asked for zeros that are aligned to more than 16 bytes, the standard
/// library writes them all, while for bytes the system gives a page when it is first written to. So a KV cache
/// takes the memory that it uses, not what it may use.
pub(crate) struct AlignedBuf {
    raw: Vec<u8>,
    /// Where the first line begins in `raw`, which is never resized: bytes do not move.
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of at least `bytes` zeros.
    pub(crate) fn zeroed(bytes: usize) -> AlignedBuf {
        let len = bytes.next_multiple_of(LINE);
        let raw = vec![0; len + LINE];
        let start = raw.as_ptr().align_offset(LINE);
        AlignedBuf { raw, start, len }
    }

    /// Makes the buffer hold at least `bytes`; what it held before is kept, what is new is zero.
    pub(crate) fn grow(&mut self, bytes: usize) {
        if self.len < bytes {
            let mut larger = AlignedBuf::zeroed(bytes);
            larger.bytes_mut()[..self.len].copy_from_slice(self.bytes());
            *self = larger;
        }
    }

    /// As [`AlignedBuf::grow`], but by twofold steps: what needs a little more each time grows rarely.
    pub(crate) fn grow_twofold(&mut self, bytes: usize) {
        if self.len < bytes {
            self.grow(bytes.next_power_of_two());
        }
    }

    /// Length in bytes: a multiple of 64.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.bytes().as_ptr()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.bytes_mut().as_mut_ptr()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.raw[self.start..][..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..][..self.len]
    }
}

impl Default for AlignedBuf {
    fn default() -> AlignedBuf {
        AlignedBuf::zeroed(0)
    }
}

impl Clone for AlignedBuf {
    fn clone(&self) -> AlignedBuf {
        let mut copy = AlignedBuf::zeroed(self.len);
        copy.bytes_mut().copy_from_slice(self.bytes());
        copy
    }
}

/// Work space of [`Kernels`](crate::Kernels): rounded activations and partial attention results.
///
/// It grows to the largest call it has seen and is then reused; one is enough for one caller.
#[derive(Default)]
pub struct Scratch {
    /// Activations in 8 bit, see `cpu::matmul::quantize`.
    pub(crate) rows: AlignedBuf,
    /// Activations that the op which computes them rounds for the one that takes them.
    pub(crate) ahead: AlignedBuf,
    /// Which activations those are; 0 for none.
    pub(crate) stamp: u64,
    /// Rows of an attention call.
    pub(crate) query_rows: Vec<QueryRow>,
    /// Its queries and states.
    pub(crate) attention: AlignedBuf,
}

impl Scratch {
    /// An empty work space.
    pub fn new() -> Scratch {
        Scratch::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_zero_aligned_and_of_whole_lines() {
        for (bytes, len) in [
            (0, 0),
            (1, 64),
            (64, 64),
            (65, 128),
            (10_000_000, 10_000_000),
        ] {
            let buffer = AlignedBuf::zeroed(bytes);
            assert_eq!(buffer.len(), len);
            assert!(buffer.bytes().iter().all(|byte| *byte == 0));
            assert_eq!(buffer.as_ptr() as usize % 64, 0);
        }
    }

    #[test]
    fn a_buffer_that_grows_keeps_what_it_held() {
        let mut buffer = AlignedBuf::zeroed(64);
        buffer.bytes_mut().fill(7);
        buffer.grow(200);
        assert!(buffer.bytes()[..64].iter().all(|byte| *byte == 7));
        assert!(buffer.bytes()[64..].iter().all(|byte| *byte == 0));
        let copy = buffer.clone();
        assert_eq!(copy.bytes(), buffer.bytes());
        assert_eq!(copy.as_ptr() as usize % 64, 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_buffer_takes_memory_as_it_is_written_to() {
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let buffer = AlignedBuf::zeroed(1 << 30);
        assert!(
            resident() < before + (1 << 29),
            "the whole buffer was touched"
        );
        drop(buffer);
    }
}
