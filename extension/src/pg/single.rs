//! Variables of a process. A thread-local one costs a call at each use from within a shared library.

use std::cell::{Cell, RefCell};

/// A variable that only the process's one thread uses.
pub struct Single<T>(T);

// SAFETY: server processes have one thread, and this library starts no other. Tests that run outside a server do not touch
// what is kept in these.
unsafe impl<T> Sync for Single<T> {}

impl<T> Single<T> {
    pub const fn of(value: T) -> Self {
        Self(value)
    }

    #[inline]
    pub fn inner(&self) -> &T {
        &self.0
    }
}

impl<T> Single<Cell<T>> {
    pub const fn cell(value: T) -> Self {
        Self(Cell::new(value))
    }

    #[inline]
    pub fn set(&self, value: T) {
        self.0.set(value);
    }
}

impl<T: Copy> Single<Cell<T>> {
    #[inline]
    pub fn get(&self) -> T {
        self.0.get()
    }
}

impl<T: Default> Single<Cell<T>> {
    #[inline]
    pub fn take(&self) -> T {
        self.0.take()
    }
}

impl<T> Single<RefCell<T>> {
    pub const fn new(value: T) -> Self {
        Self(RefCell::new(value))
    }

    /// # Panics
    /// It is borrowed already.
    #[inline]
    pub fn with<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> R {
        use_it(&mut self.0.borrow_mut())
    }

    /// # Panics
    /// It is being changed.
    #[inline]
    pub fn look<R>(&self, look_at_it: impl FnOnce(&T) -> R) -> R {
        look_at_it(&self.0.borrow())
    }

    /// `None`: it is borrowed already.
    pub fn try_with<R>(&self, use_it: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.0.try_borrow_mut().ok().map(|mut value| use_it(&mut value))
    }

    /// # Panics
    /// It is borrowed.
    pub fn replace(&self, value: T) -> T {
        self.0.replace(value)
    }
}

impl<T: Default> Single<RefCell<T>> {
    /// # Panics
    /// It is borrowed.
    pub fn take(&self) -> T {
        self.0.take()
    }
}
