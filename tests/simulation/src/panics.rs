//! Panics of any task of a world. A runtime keeps the panic of a task to whoever waits for it, and
//! nobody waits for what a recipe does in the background.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    /// The first panic on this thread since it was last asked: a world is on one thread.
    static FIRST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Forgets the panics of this thread, and notes those to come.
pub(crate) fn watch() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            FIRST.with_borrow_mut(|first| {
                first.get_or_insert_with(|| panic.to_string());
            });
            usual(panic);
        }));
    });
    FIRST.take();
}

/// The first panic on this thread since [`watch`].
pub(crate) fn seen() -> Option<String> {
    FIRST.take()
}
