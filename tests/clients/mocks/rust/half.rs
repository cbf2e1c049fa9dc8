//! Stands in for the crate `half`, which cannot be had here: what the client uses of it.

#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct f16(u16);

impl f16 {
    pub fn from_le_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_le_bytes(bytes))
    }
}

impl From<f16> for f64 {
    fn from(one: f16) -> Self {
        let (exponent, fraction) = (i32::from((one.0 >> 10) & 0x1f), f64::from(one.0 & 0x3ff));
        let sign = if one.0 & 0x8000 == 0 { 1.0 } else { -1.0 };
        match exponent {
            0 => sign * fraction * 2f64.powi(-24),
            0x1f => if fraction == 0.0 { sign * Self::INFINITY } else { Self::NAN },
            _ => sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
        }
    }
}
