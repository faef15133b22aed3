//! Certificates, keys and secrets from files that change while a program runs; TLS at both ends.
//!
//! - [`watched`]: what files say now, read again when they change;
//! - [`material`]: a certificate, its key and the authorities that others are checked against;
//! - [`dial`]: connections that a program opens; what it accepts is the coordinator's;
//! - [`misfit`]: why two ends never come to speak.
//!
//! One crypto provider: `ring`.

pub mod dial;
pub mod material;
pub mod misfit;
pub mod watched;

pub use dial::Dial;
pub use material::{Files, Material, TlsError};
pub use misfit::Misfit;
pub use watched::Watched;
