//! The product's command line as a program that the tests can start.

fn main() {
    outrider::cli::run()
}
