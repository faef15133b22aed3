//! The `conclave` binary.

fn main() -> std::process::ExitCode {
    conclave_cli::main()
}
