//! Fuzzing of everything that reads bytes from strangers, on a stable compiler: a short run with every `cargo test`, and
//! `make fuzz` for as long as it is given.
//!
//! A [target](targets) reads one input from a file. Inputs are the [seeds], the files in `corpus`, and [mutations](mutate) of
//! both; what makes a reader say something new is kept and mutated further. Each target runs in a [process of its own](child),
//! where no input may
//! - panic, or be called a fault of this crate,
//! - hold more than 1 GiB at a time of what Rust allocates ([`allocation`]), or make the process larger than that,
//! - take more than 5 seconds.
//!
//! An input at fault is kept in a folder that the failure names. Once the fault is mended, move it to `corpus`, below the target's name.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::unwrap_used)] // All of it is a test.

mod allocation;
mod child;
mod mutate;
mod seeds;
mod targets;

use std::time::Duration;

use child::{Budget, Settings};

/// Inputs of the short run, beside seeds and corpus.
const SHORT: u64 = 400;

#[test]
fn no_input_of_a_short_run_is_at_fault() {
    for target in targets::all() {
        let executions = child::start(target.name, &Settings { seed: 1, budget: Budget::Executions(SHORT) });
        assert!(executions > SHORT, "{}: {executions} executions", target.name);
    }
}

#[test]
#[ignore = "takes as long as it is given: make fuzz"]
fn no_input_of_a_long_run_is_at_fault() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a whole number"));
    let only = std::env::var("FUZZ_TARGET").ok();
    let chosen: Vec<_> = targets::all()
        .into_iter()
        .filter(|target| only.as_ref().is_none_or(|only| only.is_empty() || only == target.name))
        .collect();
    assert!(!chosen.is_empty(), "there is no target {only:?}");
    let seconds = number("FUZZ_SECONDS").unwrap_or(120) / chosen.len() as u64;
    let seed = number("FUZZ_SEED").unwrap_or(2);
    for target in chosen {
        let budget = Budget::Time(Duration::from_secs(seconds.max(1)));
        let executions = child::start(target.name, &Settings { seed, budget });
        println!("{:12} {executions:>9} executions", target.name);
    }
}

#[test]
#[ignore = "what the other two start"]
fn one_target() {
    child::run();
}
