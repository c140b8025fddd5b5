//! Where this user's programs keep what can be made again: calibrations, shapes of kernels, what drivers have compiled.

use std::path::PathBuf;

/// `$XDG_CACHE_HOME/outrider`, by default `~/.cache/outrider`; `None` where neither variable names a folder. As the XDG base
/// directory specification has it, a relative path in `XDG_CACHE_HOME` counts as none.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| set("HOME").map(|home| home.join(".cache")));
    Some(cache?.join("outrider"))
}
