//! Stands in for the crate `ort` (2.0.0-rc.10), which cannot be had here: the names and signatures that the client uses,
//! over the table of functions that ONNX Runtime's own library hands out (`OrtApi`, which is only ever added to).

use std::ffi::{c_char, c_void, CStr, CString};
use std::mem::transmute;
use std::ptr::null_mut;

type Handle = *mut c_void;
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
pub struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

#[repr(C)]
struct Base {
    get_api: extern "C" fn(u32) -> *const Handle,
    get_version: extern "C" fn() -> *const c_char,
}

unsafe extern "C" {
    fn OrtGetApiBase() -> *const Base;
}

fn entry(place: usize) -> Handle {
    unsafe { *((*OrtGetApiBase()).get_api)(1).add(place) }
}

/// Call a function of the table by its place in it; whatever it returns but null is an error.
macro_rules! call {
    ($place:expr, $($given:expr => $kind:ty),*) => {{
        let function: extern "C" fn($($kind),*) -> Handle = unsafe { transmute(entry($place)) };
        checked(function($($given),*))
    }};
}

fn checked(status: Handle) -> Result<()> {
    if status.is_null() {
        return Ok(());
    }
    let message: extern "C" fn(Handle) -> *const c_char = unsafe { transmute(entry(2)) };
    Err(Error(unsafe { CStr::from_ptr(message(status)) }.to_string_lossy().into_owned()))
}

pub mod value {
    use super::*;

    pub trait Element: Copy {
        const TYPE: i32;
    }

    macro_rules! elements {
        ($($kind:ty => $number:expr),*) => { $(impl Element for $kind { const TYPE: i32 = $number; })* };
    }
    elements!(f32 => 1, i32 => 6, i64 => 7, bool => 9, half::f16 => 10, f64 => 11);

    pub struct Tensor<T> {
        pub(crate) held: Handle,
        _data: Box<[T]>,
    }

    /// A tensor of any type; what it was made of lives as long as the process, which is a test's.
    pub struct DynValue(pub(crate) Handle);

    impl<T: Element> Tensor<T> {
        pub fn from_array((shape, data): (Vec<i64>, Vec<T>)) -> Result<Self> {
            let mut data = data.into_boxed_slice();
            let (mut memory, mut held) = (null_mut(), null_mut());
            call!(69, 1 => i32, 0 => i32, &mut memory => *mut Handle)?;
            let bytes = std::mem::size_of_val(&*data);
            call!(49, memory => Handle, data.as_mut_ptr().cast() => Handle, bytes => usize, shape.as_ptr() => *const i64,
                  shape.len() => usize, T::TYPE => i32, &mut held => *mut Handle)?;
            Ok(Self { held, _data: data })
        }

        pub fn into_dyn(self) -> DynValue {
            let held = self.held;
            std::mem::forget(self);
            DynValue(held)
        }
    }

    impl DynValue {
        pub fn try_extract_tensor<T: Element>(&self) -> Result<(&[i64], &[T])> {
            let (mut info, mut kind, mut rank, mut count, mut data) = (null_mut(), 0, 0, 0, null_mut());
            call!(65, self.0 => Handle, &mut info => *mut Handle)?;
            call!(60, info => Handle, &mut kind => *mut i32)?;
            if kind != T::TYPE {
                return Err(Error(format!("is of type {kind}, not {}", T::TYPE)));
            }
            call!(61, info => Handle, &mut rank => *mut usize)?;
            let mut shape = vec![0; rank];
            call!(62, info => Handle, shape.as_mut_ptr() => *mut i64, rank => usize)?;
            call!(64, info => Handle, &mut count => *mut usize)?;
            call!(51, self.0 => Handle, &mut data => *mut Handle)?;
            Ok((shape.leak(), unsafe { std::slice::from_raw_parts(data.cast(), count) }))
        }
    }
}

pub mod session {
    use super::value::DynValue;
    use super::*;
    use std::collections::HashMap;

    pub struct Session {
        held: Handle,
        outputs: Vec<CString>,
    }

    pub struct SessionBuilder;
    pub struct SessionInputValue(DynValue);
    pub struct SessionOutputs(HashMap<String, DynValue>);

    impl From<DynValue> for SessionInputValue {
        fn from(value: DynValue) -> Self {
            Self(value)
        }
    }

    impl std::ops::Index<&str> for SessionOutputs {
        type Output = DynValue;
        fn index(&self, name: &str) -> &DynValue {
            &self.0[name]
        }
    }

    impl SessionBuilder {
        pub fn commit_from_file(self, path: impl AsRef<std::path::Path>) -> Result<Session> {
            let (mut env, mut options, mut held) = (null_mut(), null_mut(), null_mut());
            let path = CString::new(path.as_ref().to_string_lossy().as_bytes()).unwrap();
            call!(3, 2 => i32, c"test".as_ptr() => *const c_char, &mut env => *mut Handle)?;
            call!(10, &mut options => *mut Handle)?;
            call!(7, env => Handle, path.as_ptr() => *const c_char, options => Handle, &mut held => *mut Handle)?;
            let (mut count, mut memory) = (0, null_mut());
            call!(31, held => Handle, &mut count => *mut usize)?;
            call!(78, &mut memory => *mut Handle)?;
            let mut outputs = Vec::new();
            for place in 0..count {
                let mut name: *mut c_char = null_mut();
                call!(37, held => Handle, place => usize, memory => Handle, &mut name => *mut *mut c_char)?;
                outputs.push(unsafe { CStr::from_ptr(name) }.to_owned());
            }
            Ok(Session { held, outputs })
        }
    }

    impl Session {
        pub fn builder() -> Result<SessionBuilder> {
            Ok(SessionBuilder)
        }

        pub fn run(&mut self, inputs: Vec<(String, SessionInputValue)>) -> Result<SessionOutputs> {
            let names: Vec<CString> = inputs.iter().map(|(name, _)| CString::new(name.as_str()).unwrap()).collect();
            let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
            let values: Vec<Handle> = inputs.iter().map(|(_, value)| value.0.0).collect();
            let outputs: Vec<*const c_char> = self.outputs.iter().map(|name| name.as_ptr()).collect();
            let mut found: Vec<Handle> = vec![null_mut(); outputs.len()];
            call!(9, self.held => Handle, null_mut() => Handle, names.as_ptr() => *const *const c_char,
                  values.as_ptr() => *const Handle, values.len() => usize, outputs.as_ptr() => *const *const c_char,
                  outputs.len() => usize, found.as_mut_ptr() => *mut Handle)?;
            let named = self.outputs.iter().zip(found);
            Ok(SessionOutputs(named.map(|(name, held)| (name.to_string_lossy().into_owned(), DynValue(held))).collect()))
        }
    }
}
