//! Benches, and side-by-side runs.
