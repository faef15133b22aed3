//! From an [`Isa`](crate::Isa) to the function compiled for it.

/// Declares a function that takes an `Isa` first and calls `$generic::<L>` compiled for it.
///
/// `$generic` is `#[inline(always)]`, generic over [`Lanes`](super::lanes::Lanes) and unsafe: its
/// requirements, and that the processor has the instruction set, are the caller's to keep.
macro_rules! per_isa {
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident = $($generic:ident)::+ (
        $($arg:ident: $ty:ty),* $(,)?
    ) $(-> $ret:ty)?;) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The processor has `isa`; for the rest see the generic function.
        $vis unsafe fn $name(isa: crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
            unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: by the caller's word.
                unsafe { $($generic)::+::<crate::cpu::lanes::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: by the caller's word.
                unsafe { $($generic)::+::<crate::cpu::lanes::Avx2>($($arg),*) }
            }
            // SAFETY: by the caller's word.
            unsafe {
                match isa {
                    #[cfg(target_arch = "x86_64")]
                    crate::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    crate::Isa::Avx2 => avx2($($arg),*),
                    _ => $($generic)::+::<crate::cpu::lanes::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(super) use per_isa;
