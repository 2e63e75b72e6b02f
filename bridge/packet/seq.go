package packet

// Newer reports whether sequence number a comes after b, wrapping at 16 bits (RFC 3550 §A.1).
func Newer(a, b uint16) bool { return a != b && a-b < 1<<15 }

// An Unwrapper turns 16-bit sequence numbers into ones that never wrap, so that they compare as integers.
// The zero value is ready to use; the first number keeps its value plus 65536, so that late ones before it
// stay positive.
type Unwrapper struct {
	last    int64
	started bool
}

// Unwrap returns seq as the number nearest to the highest one so far.
func (u *Unwrapper) Unwrap(seq uint16) int64 {
	if !u.started {
		u.started = true
		u.last = 1<<16 + int64(seq)
		return u.last
	}
	n := Nearest(u.last, seq)
	u.last = max(u.last, n)
	return n
}

// Nearest returns the number that is seq modulo 65536 and nearest to reference.
func Nearest(reference int64, seq uint16) int64 {
	return reference + int64(int16(seq-uint16(reference)))
}
