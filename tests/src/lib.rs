//! Harness and process-level proof.
