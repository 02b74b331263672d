//! Tells the compiler that `--cfg loom` (the model checker's build) is a known setting.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rerun-if-changed=build.rs");
}
