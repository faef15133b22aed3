//! Memory that ops reuse from call to call, so that a step allocates nothing once warm.

use std::alloc::{self, Layout};

/// One cache line, so that a vector of them starts on a line boundary.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zeroed bytes that start on a 64-byte boundary.
#[derive(Clone, Default)]
pub(crate) struct AlignedBuf {
    lines: Vec<Line>,
}

impl AlignedBuf {
    /// A buffer of at least `bytes` zeros. The system gives a page when it is first written to: a KV cache
    /// takes the memory that it uses, not what it may use.
    pub(crate) fn zeroed(bytes: usize) -> AlignedBuf {
        let count = bytes.div_ceil(64);
        let Ok(layout) = Layout::array::<Line>(count) else {
            // No machine has so much; `Vec` says so as it says of any such length.
            return AlignedBuf {
                lines: vec![Line([0; 64]); count],
            };
        };
        if layout.size() == 0 {
            return AlignedBuf::default();
        }
        // SAFETY: the layout is not of size 0.
        let start = unsafe { alloc::alloc_zeroed(layout) }.cast::<Line>();
        if start.is_null() {
            alloc::handle_alloc_error(layout);
        }
        // SAFETY: `start` comes from the global allocator with the layout of `count` lines, and zeros are a
        // `Line` each.
        let lines = unsafe { Vec::from_raw_parts(start, count, count) };
        AlignedBuf { lines }
    }

    /// Makes the buffer hold at least `bytes`; what it held before is kept, what is new is zero.
    pub(crate) fn grow(&mut self, bytes: usize) {
        let lines = bytes.div_ceil(64);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; 64]));
        }
    }

    /// Length in bytes: a multiple of 64.
    pub(crate) fn len(&self) -> usize {
        self.lines.len() * 64
    }

    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.lines.as_ptr().cast()
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.lines.as_mut_ptr().cast()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `Line` is 64 plain bytes without padding, so the vector is `len()` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len();
        // SAFETY: as in `bytes`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), len) }
    }
}

/// Work space of [`Kernels`](crate::Kernels): rounded activations and partial attention results.
///
/// It grows to the largest call it has seen and is then reused; one is enough for one caller.
#[derive(Default)]
pub struct Scratch {
    /// Activations in 8 bit, see `cpu::matmul::quantize`.
    pub(crate) rows: AlignedBuf,
    /// States of attention spans.
    pub(crate) spans: Vec<f32>,
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
