//go:build race

package packet

// Scribble overwrites memory that is free to be used again, in builds with the race detector only, so that whoever has
// kept a reference to it finds out in every test.
func Scribble(b []byte) {
	for i := range b {
		b[i] = 0xdb
	}
}
