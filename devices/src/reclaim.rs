//! Memory that has done its work, given back to the system: pages of a model file whose weights were packed, and what the
//! allocator keeps of a start's garbage.
//!
//! *Invariant:* nothing here changes a byte that anybody can read: pages of a file are read from it again when they are
//! touched, and only memory that belongs to nobody leaves the allocator.

/// Lets go of the pages that lie wholly inside `bytes`, if the system maps them from a file and nothing wrote to them.
///
/// They stay in the system's page cache, which is anybody's; a later read finds them there or in the file. Where that cannot
/// be made sure, and on other systems than Linux, nothing happens.
pub fn file_pages(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    linux::file_pages(bytes);
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

/// Gives the allocator's free memory back to the system, of all its arenas; call it when a start is over. A no-op where the
/// C library has no such call.
pub fn free_lists() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes no pointer and frees no object that is in use; it may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The same on a thread of its own, for whoever must not wait.
pub fn free_lists_aside() {
    // Where no thread can be had, memory stays with the allocator until the next call.
    let _ = std::thread::Builder::new().name("reclaim".into()).spawn(free_lists);
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ops::Range;

    pub(super) fn file_pages(bytes: &[u8]) {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Some(page) = usize::try_from(page).ok().filter(|page| page.is_power_of_two()) else {
            return;
        };
        let all = bytes.as_ptr_range();
        let first = (all.start as usize).next_multiple_of(page);
        let end = all.end as usize / page * page;
        if first >= end || !is_of_a_file(&(first..end)) {
            return;
        }
        let start = bytes.as_ptr().wrapping_add(first - all.start as usize);
        // SAFETY: the range lies inside `bytes`, in one mapping of a file without permission to write. Such pages are the
        // file's own, so the system drops no more than this process's view of them, and reads them again at the next touch.
        unsafe {
            libc::madvise(start.cast_mut().cast(), end - first, libc::MADV_DONTNEED);
        }
    }

    /// Whether one mapping of a file that this process cannot write to covers the range.
    fn is_of_a_file(range: &Range<usize>) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        maps.lines()
            .filter_map(read_only_file)
            .any(|mapped| mapped.start <= range.start && range.end <= mapped.end)
    }

    /// The addresses of a line of `/proc/self/maps` (addresses, permissions, offset, device, inode, path), if it is of a file
    /// that can be read and not written here.
    fn read_only_file(line: &str) -> Option<Range<usize>> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let permissions = words.next()?;
        let inode: u64 = words.nth(2)?.parse().ok()?;
        let address = |word| usize::from_str_radix(word, 16).ok();
        (inode != 0 && permissions.starts_with("r-")).then_some(address(start)?..address(end)?)
    }

    #[cfg(test)]
    mod tests {
        use super::read_only_file;

        #[test]
        fn only_read_only_files_are_told_from_the_map() {
            let file = "7f00-8f00 r--s 00001000 fe:00 1234   /models/a b.gguf";
            assert_eq!(read_only_file(file), Some(0x7f00..0x8f00));
            for other in [
                "7f00-8f00 rw-p 00001000 fe:00 1234   /models/a.gguf",
                "7f00-8f00 r--p 00000000 00:00 0 ",
                "7f00-8f00 ---p 00001000 fe:00 1234   /models/a.gguf",
                "ffff-",
                "",
            ] {
                assert_eq!(read_only_file(other), None, "{other}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{file_pages, free_lists};
    use crate::mapped::map_file;

    #[test]
    fn what_was_given_back_reads_as_before() {
        let path = std::env::temp_dir().join(format!("outrider-reclaim-{}", std::process::id()));
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("a file in the temporary folder");
        let map = map_file(&path).expect("a mapped file");
        std::fs::remove_file(&path).expect("the file is there");
        for part in [0..300_000, 5..299_001, 10..20, 4096..8192] {
            file_pages(&map[part]);
            free_lists();
            assert!(map[..] == bytes[..]);
        }
        // Memory of the process's own is left as it is.
        let own = bytes.clone();
        file_pages(&own);
        assert!(own == bytes);
    }
}
