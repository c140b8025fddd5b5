//! The `outrider` binary.

fn main() {
    outrider::cli::run()
}
