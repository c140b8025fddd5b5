//! No bytes make the readers panic, allocate without bound, or accept what is not there.
//!
//! The corpus in `pipeline/corpus` holds files that a reader once got wrong, or could have.

#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::{ProptestConfig, any, proptest};

use super::fixture::{self, Directory, Gguf};
use super::source::Source;
use super::tests::open;
use super::{Checkpoint, CheckpointError, safetensors};
use crate::model::Model;

/// Everything that is done with a checkpoint; the outcome does not matter, only that there is one.
fn use_up(checkpoint: Result<Checkpoint, CheckpointError>) {
    match checkpoint {
        Ok(checkpoint) => {
            if let Ok(model) = Model::new(&checkpoint) {
                assert_eq!(model.config().shape.layers, fixture::LAYERS);
                assert!(model.tokenizer().encode("the end", crate::SpecialTokens::Plain).is_ok());
            }
            if let Err(e) = checkpoint.summary() {
                assert!(e.to_string().len() < 2000, "{e}");
            }
        }
        Err(e) => assert!(e.to_string().len() < 2000, "{e}"),
    }
}

/// The model without its vocabulary, of which each bit is worth turning.
fn small() -> Gguf {
    let mut file = Gguf::llama();
    for key in ["tokens", "token_type", "merges"] {
        file.remove(&format!("tokenizer.ggml.{key}"));
    }
    file
}

#[test]
fn every_truncation_is_an_error() {
    let file = Gguf::llama();
    let (bytes, header) = (file.bytes(), file.header().len());
    for len in 0..bytes.len() {
        match open(&bytes[..len]) {
            Err(CheckpointError::NotAModel { .. }) => assert!(len < 4),
            Err(CheckpointError::Truncated { expected, found, .. }) => {
                assert_eq!(found, len as u64);
                assert!(expected > found && expected <= bytes.len() as u64);
                // Once the header is whole, the message knows how long the file should be.
                assert!(len < header || expected == bytes.len() as u64, "{expected} for {len}");
            }
            other => panic!("cut to {len} of {} bytes: {other:?}", bytes.len()),
        }
    }
}

#[test]
fn every_bit_of_a_header_may_turn() {
    let file = small();
    let (bytes, header) = (file.bytes(), file.header().len());
    for bit in 0..header * 8 {
        let mut turned = bytes.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        use_up(open(&turned));
    }
}

#[test]
fn every_number_of_a_header_may_be_huge() {
    let file = small();
    let (bytes, header) = (file.bytes(), file.header().len());
    for at in 4..header - 8 {
        for value in [u64::MAX, u64::MAX / 2, 1 << 40, 0] {
            let mut changed = bytes.clone();
            changed[at..at + 8].copy_from_slice(&value.to_le_bytes());
            use_up(open(&changed));
        }
    }
}

#[test]
fn every_truncation_of_safetensors_is_an_error() {
    let bytes = fixture::safetensors(&fixture::hugging_face_tensors());
    // All of the header, and steps through the data.
    for len in (0..3000).chain((3000..bytes.len()).step_by(97)) {
        let error = safetensors::read_file(Source::made(&bytes[..len])).unwrap_err();
        let CheckpointError::Truncated { expected, found, .. } = error else {
            panic!("cut to {len}: {error}");
        };
        assert!(found == len as u64 && expected > found);
    }
    safetensors::read_file(Source::made(&bytes)).unwrap();
}

#[test]
fn hostile_safetensors_headers_are_errors() {
    let read = |header: &str| {
        safetensors::read_file(Source::made(&fixture::with_header(header, 64)))
            .unwrap_err()
            .to_string()
    };
    let one = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
    };
    for header in [
        "{".to_owned(),
        "{}}".to_owned(),
        r#"{"a":1}"#.to_owned(),
        one("F32", "[4]", 0, 15),
        one("F32", "[4]", 16, 0),
        one("F32", "[4]", 4, 20),
        one("F32", "[18446744073709551615, 2]", 0, 16),
        one("F32", "[4611686018427387904]", 0, 16),
        one("F32", "[4]", 18446744073709551600, 18446744073709551615),
        one("F32", "[-1]", 0, 16),
        one("X9", "[4]", 0, 16),
        format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000)),
    ] {
        let message = read(&header);
        assert!(message.contains("malformed"), "{header}: {message}");
        assert!(message.len() < 2000);
    }
    assert!(read(&one("F8_E4M3", "[16]", 0, 16)).contains("F8_E4M3"));
    assert!(read(&one("F32", "[1000]", 0, 4000)).contains("truncated: tensor a"));
    assert!(read(&one("F32", "[0]", 0, 0)).contains("above 0"));
    assert!(read(&one("F32", "[]", 0, 4)).contains("scalar"));
}

#[test]
fn the_corpus_is_refused() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut files: Vec<_> = std::fs::read_dir(corpus).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let error = Checkpoint::open(&file).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
    }
}

/// Writes the corpus anew: `cargo test -p outrider-pipeline write_the_corpus -- --ignored`.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_corpus() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let changed = |change: &dyn Fn(&mut Gguf)| {
        let mut file = Gguf { entries: Vec::new(), tensors: Vec::new() };
        file.tensor("t", &[4], 0);
        change(&mut file);
        file.bytes()
    };
    let deep = |depth: usize| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(depth);
    let huge = [&0u32.to_le_bytes()[..], &(1u64 << 30).to_le_bytes()].concat();
    let counts = |tensors: u64, entries: u64| {
        [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &entries.to_le_bytes()].concat()
    };
    for (name, bytes) in [
        ("alignment-zero.gguf", changed(&|f| f.set_u32("general.alignment", 0))),
        ("alignment-not-a-power.gguf", changed(&|f| f.set_u32("general.alignment", 3))),
        ("arrays-in-arrays.gguf", changed(&|f| f.set("k", 9, deep(100)))),
        ("array-of-a-billion.gguf", changed(&|f| f.set("k", 9, huge.clone()))),
        ("entries-without-end.gguf", counts(0, u64::MAX)),
        ("tensors-without-end.gguf", counts(u64::MAX, 0)),
        ("text-without-end.gguf", changed(&|f| f.set("k", 8, u64::MAX.to_le_bytes().to_vec()))),
        ("dimensions-overflow.gguf", changed(&|f| f.of("t").1 = vec![1 << 32, 1 << 32, 4])),
        ("five-dimensions.gguf", changed(&|f| f.of("t").1 = vec![1; 5])),
        ("name-not-text.gguf", {
            let mut bytes = changed(&|f| f.of("t").0 = "!!!!".to_owned());
            let at = bytes.windows(4).position(|w| w == b"!!!!").unwrap();
            bytes[at..at + 4].fill(0xff);
            bytes
        }),
        ("two-of-a-name.gguf", changed(&|f| f.tensor("t", &[4], 0))),
        ("big-endian.gguf", b"GGUF\0\0\0\x03".to_vec()),
        ("header-longer-than-file.safetensors", b"\xff\0\0\0\0\0\0\0{}".to_vec()),
        ("header-of-exabytes.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\xff{}".to_vec()),
        (
            "offsets-overflow.safetensors",
            fixture::with_header(
                r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#,
                0,
            ),
        ),
    ] {
        std::fs::write(corpus.join(name), bytes).unwrap();
    }
}

/// Writes the fuzzer's seeds anew: headers of small models, whose tensors it puts behind them.
/// `cargo test -p outrider-pipeline write_the_seeds -- --ignored`.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_seeds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds/gguf");
    let even = |mut bytes: Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    };
    for (name, bytes) in [
        ("llama", even(Gguf::llama().header())),
        ("without-vocabulary", even(small().header())),
        (
            "safetensors",
            even(fixture::safetensors(&fixture::hugging_face_tensors())[..2600].to_vec()),
        ),
    ] {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let bytes = if magic { [b"GGUF\x03\0\0\0", bytes.as_slice()].concat() } else { bytes };
        use_up(open(&bytes));
        let _ = safetensors::read_file(Source::made(&bytes)).map(|t| assert!(t.entries.is_empty()));
    }

    #[test]
    fn changed_bytes_are_survived(changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8)) {
        let file = Gguf::llama();
        let (mut bytes, header) = (file.bytes(), file.header().len());
        for (at, byte) in changes {
            bytes[at.index(header)] = byte;
        }
        use_up(open(&bytes));
    }

    #[test]
    fn changed_safetensors_are_survived(changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = fixture::safetensors(&fixture::hugging_face_tensors());
        for (at, byte) in changes {
            bytes[at.index(2500)] = byte;
        }
        if let Ok(tensors) = safetensors::read_file(Source::made(&bytes)) {
            assert!(tensors.entries.values().all(|e| e.range.end <= bytes.len()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_json_is_survived(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let directory = Directory::hugging_face();
        for (file, text) in [
            ("config.json", fixture::config_json().to_string()),
            ("tokenizer.json", fixture::tokenizer_json().to_string()),
        ] {
            let mut bytes = text.clone().into_bytes();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            directory.write(file, bytes);
            use_up(Checkpoint::open(&directory.0));
            directory.write(file, text);
        }
    }
}
