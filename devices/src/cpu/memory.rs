//! Memory of the CPU unit: aligned pages, huge where it pays, and views of them that a team of threads shares.
//!
//! *Invariant:* pages are zeroed, aligned to a cache line, and touched by nobody before their first use, so that large
//! pools that stay unused cost address space only.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every allocation: one cache line, one 512-bit register.
pub(crate) const LINE: usize = 64;
const HUGE: usize = 2 << 20;
/// Arrays from this size on are mapped apart: freed, they go back to the system, and what is never touched costs nothing.
const MAPPED: usize = 256 << 10;

/// Element types for which all-zero bytes are a value and whose bytes may be seen: the plain numbers.
pub(crate) trait Plain: Copy + Send + Sync + bytemuck::Pod {}
impl<T: Copy + Send + Sync + bytemuck::Pod> Plain for T {}

enum Origin {
    Heap(Layout),
    Mapped { start: NonNull<libc::c_void>, bytes: usize },
}

/// How the system shall back an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backing {
    /// With pages of the usual size, so that only what is used is there.
    Small,
    /// With huge pages where the array has room for one, for streams that are read as a whole.
    Huge,
}

/// A zeroed array in memory of its own.
pub(crate) struct Pages<T> {
    data: NonNull<T>,
    len: usize,
    origin: Origin,
}

// SAFETY: `Pages` owns its memory exclusively, as a `Vec` of plain numbers would.
unsafe impl<T: Plain> Send for Pages<T> {}
// SAFETY: shared access through `&Pages` only reads.
unsafe impl<T: Plain> Sync for Pages<T> {}

impl<T: Plain> Pages<T> {
    /// `len` zeroes; `None` if the system has no room.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        Self::backed(len, Backing::Small)
    }

    /// The same for an array that will be read from end to end, again and again.
    pub(crate) fn stream(len: usize) -> Option<Self> {
        Self::backed(len, Backing::Huge)
    }

    fn backed(len: usize, backing: Backing) -> Option<Self> {
        let bytes = len.checked_mul(size_of::<T>())?.max(LINE).checked_next_multiple_of(LINE)?;
        match (bytes, backing) {
            (HUGE.., Backing::Huge) => Self::mapped(len, bytes, Backing::Huge),
            (MAPPED.., _) => Self::mapped(len, bytes, Backing::Small),
            _ => Self::heap(len, bytes),
        }
    }

    fn heap(len: usize, bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(bytes, LINE).ok()?;
        // SAFETY: the layout's size is at least LINE, so not zero.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) })?.cast();
        Some(Self { data, len, origin: Origin::Heap(layout) })
    }

    fn mapped(len: usize, bytes: usize, backing: Backing) -> Option<Self> {
        let spare = if backing == Backing::Huge { HUGE } else { 0 };
        let total = bytes.checked_add(spare)?;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous private mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), total, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = NonNull::new(start)?;
        let skip = match backing {
            Backing::Huge => start.as_ptr().cast::<u8>().align_offset(HUGE),
            Backing::Small => 0,
        };
        // SAFETY: skip is 0, or less than HUGE where the mapping is HUGE bytes longer than `bytes`: inside it either way.
        let data = unsafe { start.cast::<u8>().add(skip) };
        #[cfg(target_os = "linux")]
        if backing == Backing::Huge {
            // SAFETY: the range is inside the mapping made above; the advice changes no contents, and its failure
            // changes nothing but speed.
            unsafe {
                libc::madvise(data.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
            }
        }
        Some(Self { data: data.cast(), len, origin: Origin::Mapped { start, bytes: total } })
    }

    /// Bytes of the array.
    pub(crate) fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    /// A view for a team's threads.
    pub(crate) fn share(&mut self) -> Shared<'_, T> {
        Shared { data: self.data.as_ptr(), len: self.len, lifetime: PhantomData }
    }
}

impl<T> Drop for Pages<T> {
    fn drop(&mut self) {
        match self.origin {
            // SAFETY: allocated in `heap` with this very layout, and freed only here.
            Origin::Heap(layout) => unsafe { dealloc(self.data.as_ptr().cast(), layout) },
            // SAFETY: mapped in `mapped` with this start and length, and unmapped only here.
            Origin::Mapped { start, bytes } => unsafe {
                libc::munmap(start.as_ptr(), bytes);
            },
        }
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `data` points to `len` initialised (zeroed) elements that `self` owns.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

/// A view of an exclusively borrowed array through which a team's threads read and write parts of it.
///
/// The parts are checked against the array's length; that no part is written by one thread while another uses it is
/// the caller's proof: phases write disjoint parts, and a barrier lies between a write and the reads of others.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    data: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Shared` is only a pointer; using it from several threads is the proof that its unsafe methods ask for.
unsafe impl<T: Plain> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// Until the returned slice is dropped, nobody writes any of these elements.
    pub(crate) unsafe fn read(self, start: usize, len: usize) -> &'a [T] {
        assert!(start <= self.len && len <= self.len - start, "a part lies outside its array");
        // SAFETY: inside the array by the assertion; not written meanwhile by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.data.add(start), len) }
    }

    /// Elements `start..start + len`, to be written.
    ///
    /// # Safety
    /// Until the returned slice is dropped, nobody else reads or writes any of these elements.
    pub(crate) unsafe fn write(self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "a part lies outside its array");
        // SAFETY: inside the array by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

impl<'a> Shared<'a, u16> {
    /// The same memory as bytes, two for each element. Parts of both views are parts of the same array: the promise of
    /// `read` and `write` holds for them together.
    pub(crate) fn bytes(self) -> Shared<'a, i8> {
        Shared { data: self.data.cast(), len: 2 * self.len, lifetime: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_aligned_and_writable_at_both_ends() {
        let backings = [Backing::Small, Backing::Huge];
        for (len, backing) in [1, 1000, MAPPED / 4 + 5, HUGE / 4 + 3]
            .into_iter()
            .flat_map(|len| backings.map(|backing| (len, backing)))
        {
            let mut pages = Pages::<f32>::backed(len, backing).expect("memory for a test");
            assert!(pages.iter().all(|&x| x == 0.0));
            assert_eq!(pages.as_ptr() as usize % LINE, 0);
            pages[0] = 1.0;
            pages[len - 1] = 2.0;
            assert_eq!((pages.len(), pages[len - 1]), (len, 2.0));
        }
    }

    #[test]
    fn no_room_is_an_answer_not_a_crash() {
        assert!(Pages::<f32>::zeroed(usize::MAX / 8).is_none());
    }

    #[test]
    #[should_panic(expected = "outside its array")]
    fn parts_are_checked() {
        let mut values = Pages::<u8>::zeroed(4).expect("memory for a test");
        // SAFETY: nobody else holds the array.
        let _ = unsafe { values.share().read(2, 3) };
    }
}
