//! Each of the emulator's own checks can fail, and what it gives out about itself is true.

use std::sync::Arc;

use conclave_cuda_emulator::{Emulator, Fault};
use conclave_kernels::cuda::{Buf, CudaKernels, DeviceError, Driver, Kernel};

/// What the emulator says of a fault, and what the kernel left in its buffer.
fn run(device: &Arc<Emulator>, fault: Fault) -> (Result<(), DeviceError>, Vec<f32>) {
    let out = device.alloc(64 * 4).expect("room");
    let result = device.run_fault(fault, out);
    let mut bytes = vec![0; 64 * 4];
    device.download(out, &mut bytes).expect("within the buffer");
    let floats = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .copied()
        .map(f32::from_ne_bytes);
    (result, floats.collect())
}

#[test]
fn what_a_device_does_not_forgive_is_an_error() {
    for (fault, says) in [
        (
            Fault::BarrierSkipped,
            "32 threads wait at the barrier of line 7, 32 have ended",
        ),
        (Fault::BarriersDiffer, "threads wait at different barriers"),
        (
            Fault::LanesMissing,
            "thread 0 waits at line 23 for lanes of its warp that never come",
        ),
        (
            Fault::WriteBeyond,
            "wrote behind an allocation of 256 bytes",
        ),
        (
            Fault::SharedBeyond,
            "wrote beyond its 256 bytes of shared memory",
        ),
    ] {
        let (result, _) = run(&Emulator::new(), fault);
        let error = result.expect_err("a fault").to_string();
        assert!(error.contains(says), "{fault:?}: {error}");
    }
}

#[test]
fn a_read_behind_a_buffer_gives_nan() {
    let (result, out) = run(&Emulator::new(), Fault::ReadBeyond);
    assert_eq!(result, Ok(()));
    assert!(out[0].is_nan(), "{}", out[0]);
}

#[test]
fn a_missing_barrier_shows_in_another_order() {
    let expected: Vec<f32> = (0..64).map(|i| ((i + 1) % 64) as f32).collect();
    let right = |device: &Arc<Emulator>| run(device, Fault::NoBarrier).1 == expected;
    assert!(
        !right(&Emulator::new()),
        "a neighbour's number is read before it is written"
    );
    let orders: Vec<_> = (0..4)
        .map(|seed| run(&Emulator::shuffled(seed), Fault::NoBarrier).1)
        .collect();
    assert!(orders.iter().any(|o| {
        o.iter()
            .zip(&orders[0])
            .any(|(a, b)| a.to_bits() != b.to_bits())
    }));
}

#[test]
fn launches_that_no_device_takes_are_refused() {
    let device = Emulator::new();
    let launch = |block: u32, shared: u32, arguments: usize| {
        let mut places = vec![std::ptr::null_mut(); arguments];
        // SAFETY: refused before any argument is read.
        unsafe { device.launch(Kernel::SiluMul, [1; 3], [block, 1, 1], shared, &mut places) }
    };
    for (result, says) in [
        (launch(32, (48 << 10) + 1, 4), "49152 are the limit"),
        (launch(1025, 0, 4), "blocks of 1025 threads"),
        (launch(0, 0, 4), "blocks of 0 threads"),
        (launch(32, 0, 3), "takes 4 arguments, not 3"),
    ] {
        let error = result.expect_err("a refusal").to_string();
        assert!(
            error.starts_with("silu_mul failed") && error.contains(says),
            "{error}"
        );
    }
}

#[test]
fn memory_is_counted_and_comes_back() {
    let device = Emulator::with_memory(1000);
    let driver: Arc<dyn Driver> = device.clone();
    let mut buffer = Buf::<f32>::new(&driver, 200).expect("room");
    assert_eq!(
        (device.allocations(), driver.memory().map(|m| m.free)),
        (1, Ok(200))
    );
    let full = Buf::<u8>::new(&driver, 201)
        .map(|_| ())
        .expect_err("no room");
    assert_eq!(
        full,
        DeviceError::OutOfMemory {
            asked: 201,
            free: 200
        }
    );
    // The old goes before the new comes.
    buffer.ensure(250).expect("room");
    drop(buffer);
    assert_eq!(
        (device.allocations(), driver.memory().map(|m| m.free)),
        (0, Ok(1000))
    );
}

#[test]
fn addresses_outside_of_allocations_are_refused() {
    let device = Emulator::new();
    let at = device.alloc(64).expect("room");
    assert_eq!(device.upload(at + 60, &[0; 4]), Ok(()));
    for result in [
        device.upload(at + 61, &[0; 4]),
        device.download(at + 61, &mut [0; 4]),
        device.copy(at, at + 40, 25),
        device.upload(at - 1, &[0]),
    ] {
        assert!(
            matches!(result, Err(DeviceError::Failed { .. })),
            "{result:?}"
        );
    }
    device.free(at + 4);
    let late = device
        .synchronize()
        .expect_err("freed what was not allocated");
    assert!(
        late.to_string().contains("no allocation begins there"),
        "{late}"
    );
    assert_eq!(device.synchronize(), Ok(()));
}

#[test]
fn a_device_fails_when_told_to() {
    let device = Emulator::new();
    let kernels = CudaKernels::new(device.clone());
    let x = Buf::of(kernels.driver(), &[1.0f32; 8]).expect("room");
    let mut out = Buf::new(kernels.driver(), 8).expect("room");
    device.fail_after(1);
    let results: Vec<_> = (0..3)
        .map(|_| kernels.silu_mul(&x, &x, 8, &mut out).is_ok())
        .collect();
    assert_eq!(results, [true, false, false]);
    device.recover();
    assert!(kernels.silu_mul(&x, &x, 8, &mut out).is_ok());
    assert_eq!(device.launches(), 4);
}
