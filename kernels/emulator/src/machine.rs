//! The C++ side: `shim/machine.cpp`.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::NonNull;

/// Kernels that do what a device does not forgive (`shim/faults.cu`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Some threads end before a barrier.
    BarrierSkipped,
    /// Some threads wait at one barrier, some at another.
    BarriersDiffer,
    /// A warp operation without some lanes.
    LanesMissing,
    /// A write behind an allocation.
    WriteBeyond,
    /// A write behind shared memory.
    SharedBeyond,
    /// Another thread's number read without a barrier: wrong in some orders only.
    NoBarrier,
    /// A read behind an allocation: gives NaN.
    ReadBeyond,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fault::BarrierSkipped => "fault_barrier_skipped",
            Fault::BarriersDiffer => "fault_barriers_differ",
            Fault::LanesMissing => "fault_lanes_missing",
            Fault::WriteBeyond => "fault_write_beyond",
            Fault::SharedBeyond => "fault_shared_beyond",
            Fault::NoBarrier => "fault_no_barrier",
            Fault::ReadBeyond => "fault_read_beyond",
        }
    }
}

enum RawMachine {}
enum RawEntry {}

unsafe extern "C" {
    fn emulator_find(name: *const c_char) -> *const RawEntry;
    fn emulator_arguments(entry: *const RawEntry) -> u32;
    fn emulator_machine_new() -> *mut RawMachine;
    fn emulator_machine_free(machine: *mut RawMachine);
    fn emulator_run(
        machine: *mut RawMachine,
        entry: *const RawEntry,
        grid: *const [u32; 3],
        block: *const [u32; 3],
        shared: u32,
        arguments: *mut *mut c_void,
        first: u64,
        step: u64,
        order: u64,
    ) -> *const c_char;
}

/// A kernel.
#[derive(Clone, Copy)]
pub(crate) struct Entry(NonNull<RawEntry>);

/// The kernel of a name.
pub(crate) fn find(name: &str) -> Option<Entry> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends with 0.
    let entry = unsafe { emulator_find(name.as_ptr()) };
    NonNull::new(entry.cast_mut()).map(Entry)
}

impl Entry {
    /// Arguments that the kernel takes.
    pub(crate) fn arguments(self) -> usize {
        // SAFETY: entries are static.
        unsafe { emulator_arguments(self.0.as_ptr()) as usize }
    }
}

/// One launch, for the machines that share its blocks.
pub(crate) struct Launch {
    pub(crate) entry: Entry,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) arguments: *mut *mut c_void,
    /// A machine takes every so many-th block.
    pub(crate) step: u64,
    pub(crate) order: u64,
}

// SAFETY: entries are static, and arguments are only read.
unsafe impl Sync for Launch {}

/// Stacks and shared memory for the threads of one block.
pub(crate) struct Machine(NonNull<RawMachine>);

// SAFETY: a machine is bound to no processor thread between runs.
unsafe impl Send for Machine {}

impl Machine {
    pub(crate) fn new() -> Machine {
        // SAFETY: takes nothing.
        let machine = unsafe { emulator_machine_new() };
        Machine(NonNull::new(machine).expect("C++ throws or ends where memory lacks"))
    }

    /// Runs block `first` of a launch and every `step`-th after it.
    ///
    /// # Safety
    /// As [`conclave_kernels::cuda::Driver::launch`].
    pub(crate) unsafe fn run(&mut self, launch: &Launch, first: u64) -> Result<(), String> {
        // SAFETY: the caller's promise.
        let message = unsafe {
            emulator_run(
                self.0.as_ptr(),
                launch.entry.0.as_ptr(),
                &launch.grid,
                &launch.block,
                launch.shared,
                launch.arguments,
                first,
                launch.step,
                launch.order,
            )
        };
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: a message ends with 0 and stands until the next run.
        let message = unsafe { CStr::from_ptr(message) };
        Err(message.to_string_lossy().into_owned())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and freed once.
        unsafe { emulator_machine_free(self.0.as_ptr()) };
    }
}
