//! The product's command line as a program that the tests can start, with a unit among its own that a test can break.

fn main() {
    outrider::cli::run_with(outrider_tests::frail::units_from_environment())
}
