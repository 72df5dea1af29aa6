//! One target in a process of its own: what kills the process leaves the input on disk, and what hangs is ended.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wmdp_core::Error;
use wmdp_core::dataset::limits::MEMORY_VARIABLE;
use wmdp_core::runtime::parallel::{THREADS_VARIABLE, panic_message};

use crate::allocation;
use crate::mutate::{Random, mutated};
use crate::targets::{self, Target};

const MOST_MEMORY: usize = 1 << 30;
const MOST_SECONDS: u64 = 5;
/// The longest of the inputs that are mutated further.
const LONGEST_KEPT: usize = 32 << 10;
const MOST_KEPT: usize = 4096;
const LARGE: usize = 2 << 20;

/// What the child reads: the target, its folder, the seed, and executions or milliseconds, of which one is 0.
const VARIABLE: &str = "WMDP_FAST_FUZZ_CHILD";

pub(crate) enum Budget {
    Executions(u64),
    Time(Duration),
}

pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) budget: Budget,
}

/// Runs a target in another process; returns the number of executions.
pub(crate) fn start(target: &str, settings: &Settings) -> u64 {
    let (executions, millis) = match settings.budget {
        Budget::Executions(executions) => (executions, 0),
        Budget::Time(time) => (0, time.as_millis()),
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz/{target}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["one_target", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, format!("{target}\t{}\t{}\t{executions}\t{millis}", folder.display(), settings.seed))
        // A quarter of what an input may take, and one thread, so that a run can be repeated.
        .env(MEMORY_VARIABLE, "0.25")
        .env(THREADS_VARIABLE, "1")
        .output()
        .unwrap();
    let [said, complained] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(
        output.status.success(),
        "{target}, the input is the newest file in {} ({}):\n{said}\n{complained}",
        folder.display(),
        output.status
    );
    std::fs::remove_dir_all(&folder).unwrap();
    let done = said.lines().find_map(|line| line.strip_prefix("executions "));
    done.unwrap_or_else(|| panic!("{target} did not run:\n{said}")).parse().unwrap()
}

/// The child's work.
pub(crate) fn run() {
    let Ok(given) = std::env::var(VARIABLE) else {
        return println!("nothing to do: started by hand");
    };
    let given: Vec<&str> = given.split('\t').collect();
    let [name, folder, seed, executions, millis] = given[..] else { panic!("{given:?}") };
    let target = targets::all().into_iter().find(|target| target.name == name).unwrap();
    let [seed, executions, millis] = [seed, executions, millis].map(|number| number.parse::<u64>().unwrap());
    let mut fuzzer = Fuzzer::new(target, PathBuf::from(folder), seed);
    let began = Instant::now();
    fuzzer.read_seeds();
    let seeds = fuzzer.executions();
    while fuzzer.executions() < seeds + executions || began.elapsed().as_millis() < u128::from(millis) {
        fuzzer.step();
    }
    let largest = allocation::largest_process();
    assert!(largest < MOST_MEMORY as u64, "the process had {largest} bytes at its largest");
    // On a line of its own: the test harness has begun one.
    println!("\nexecutions {}", fuzzer.executions());
}

struct Fuzzer {
    target: Target,
    folder: PathBuf,
    random: Random,
    /// Inputs to mutate.
    pool: Vec<Vec<u8>>,
    /// What readers have said, without what differs from input to input.
    said: HashSet<String>,
    executions: Arc<AtomicU64>,
}

impl Fuzzer {
    fn new(target: Target, folder: PathBuf, seed: u64) -> Self {
        let executions = Arc::new(AtomicU64::new(0));
        watch(Arc::clone(&executions));
        Self { target, folder, random: Random::new(seed), pool: Vec::new(), said: HashSet::new(), executions }
    }

    fn executions(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }

    /// Seeds under the names of the target, and the corpus's files under their own.
    fn read_seeds(&mut self) {
        let seeds = (self.target.seeds)();
        allocation::forget_largest_process();
        for (number, seed) in seeds.into_iter().enumerate() {
            let files = self.target.files;
            // A large one under one name: it takes seconds.
            let files = if seed.len() > LARGE { &files[number % files.len()..][..1] } else { files };
            for file in files {
                self.execute(file, &targets::packed(file, &seed));
            }
            self.keep(seed);
        }
        for (file, bytes) in targets::corpus(self.target.name) {
            self.execute(&file, &bytes);
            self.keep(bytes);
        }
        assert!(!self.pool.is_empty(), "{} has no short seed", self.target.name);
    }

    fn keep(&mut self, input: Vec<u8>) {
        if input.len() <= LONGEST_KEPT && self.pool.len() < MOST_KEPT {
            self.pool.push(input);
        }
    }

    /// Makes an input and reads it.
    fn step(&mut self) {
        let random = &mut self.random;
        let (input, other) = (random.below(self.pool.len()), random.below(self.pool.len()));
        let input = mutated(random, &self.pool[input], &self.pool[other], self.target.words);
        let file = *random.pick(self.target.files);
        let mut bytes = targets::packed(file, &input);
        // What is compressed is damaged within and without.
        if bytes != input && random.below(2) == 0 {
            bytes = mutated(random, &bytes, &input, self.target.words);
        }
        if self.execute(file, &bytes) {
            self.keep(input);
        }
    }

    /// What the same input takes of the processor: the clock on the wall counts other processes too.
    fn processor_seconds(&self, path: &Path) -> f64 {
        let before = processor_seconds();
        let _ = (self.target.read)(path);
        processor_seconds() - before
    }

    /// Reads one input; true if the reader said something new.
    fn execute(&mut self, file: &str, bytes: &[u8]) -> bool {
        let path = self.folder.join(file);
        // A new file each time: one that is cut and written anew goes to the disk at once, which takes longer than to read it.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, bytes).unwrap();
        let (before, began) = (allocation::begin(), Instant::now());
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.target.read)(&path)));
        let (held, elapsed) = (allocation::peak() - before, began.elapsed());
        self.executions.fetch_add(1, Ordering::Relaxed);
        let outcome = outcome.unwrap_or_else(|payload| panic!("a panic: {}", panic_message(payload.as_ref())));
        assert!(held <= MOST_MEMORY, "{held} bytes were held at a time ({outcome:?})");
        if elapsed.as_secs() >= MOST_SECONDS {
            let seconds = self.processor_seconds(&path);
            assert!(seconds < MOST_SECONDS as f64, "it took {seconds} s of the processor ({outcome:?})");
        }
        let said = match outcome {
            Ok(()) => "nothing".to_owned(),
            Err(fault @ (Error::Internal(_) | Error::Cancelled)) => panic!("called a fault of the crate: {fault}"),
            Err(error) => error.to_string(),
        };
        self.said.len() < MOST_KEPT && self.said.insert(format!("{file}: {}", gist(&said)))
    }
}

/// Time that all threads of this process have taken of the processor.
fn processor_seconds() -> f64 {
    // In hundredths of a second, the 12th and 13th behind the name.
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let (_, numbers) = stat.rsplit_once(") ").unwrap();
    numbers.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// A message without digits and what is quoted, which differ from input to input.
fn gist(message: &str) -> String {
    let mut quote = None;
    let kept = message.chars().filter(|&char| match quote {
        Some(open) if open == char => {
            quote = None;
            false
        }
        Some(_) => false,
        None if matches!(char, '"' | '`' | '\'') => {
            quote = Some(char);
            false
        }
        None => !char.is_ascii_digit(),
    });
    kept.take(200).collect()
}

/// Ends the process if an execution takes far longer than it may.
fn watch(executions: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let (mut before, mut since, mut spent) = (0, Instant::now(), processor_seconds());
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let now = executions.load(Ordering::Relaxed);
            if now != before {
                (before, since, spent) = (now, Instant::now(), processor_seconds());
                continue;
            }
            // By the clock too, as what waits takes no time of the processor; but beside busy processes much passes.
            let taken = processor_seconds() - spent;
            if taken > (4 * MOST_SECONDS) as f64 || since.elapsed().as_secs() > 60 * MOST_SECONDS {
                println!("execution {now} does not end");
                std::process::exit(1);
            }
        }
    });
}
