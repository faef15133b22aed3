//! Memory that ops reuse from call to call, so that a step allocates nothing once warm.

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
    /// A buffer of at least `bytes` zeros.
    pub(crate) fn zeroed(bytes: usize) -> AlignedBuf {
        AlignedBuf {
            lines: vec![Line([0; 64]); bytes.div_ceil(64)],
        }
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
