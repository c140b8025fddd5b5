//! What the fuzzers hold any bytes against, with the bytes that are at hand: their seeds, and what is near them.

use std::fs;
use std::path::Path;

use outrider_tests::strangers::KINDS;

use crate::worlds::Random;

/// Inputs that are made of each seed.
const NEIGHBOURS: usize = 100;

/// `bytes` with one to three places changed, cut out, doubled, or cut off.
fn neighbour(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut made = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(made.len().max(1) as u64) as usize;
        let end = (at + 1 + random.below(8) as usize).min(made.len());
        match random.below(5) {
            0 if at < made.len() => made[at] = random.below(256) as u8,
            1 if at < made.len() => made[at] ^= 1 << random.below(8),
            2 if at < end => {
                made.drain(at..end);
            }
            3 if at < end => {
                let again = made[at..end].to_vec();
                made.splice(at..at, again);
            }
            _ => made.truncate(at),
        }
    }
    made
}

#[test]
fn every_seed_of_the_fuzzers_and_what_is_near_it_holds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (kind, check) in KINDS {
        let files = fs::read_dir(seeds.join(kind)).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = files.collect();
        files.sort();
        assert!(!files.is_empty(), "{kind} has no seeds");
        for file in files {
            let bytes = fs::read(&file).unwrap();
            let mut random = Random(bytes.len() as u64);
            println!("{}", file.display());
            check(&bytes);
            for _ in 0..NEIGHBOURS {
                check(&neighbour(&bytes, &mut random));
            }
        }
    }
}
