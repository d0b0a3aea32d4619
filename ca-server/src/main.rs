//! Parses the command line and calls `cli`.

fn main() -> std::process::ExitCode {
    ca_server::cli::main()
}
