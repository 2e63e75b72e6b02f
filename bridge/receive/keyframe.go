package receive

import (
	"math/bits"
	"time"
)

const (
	keyEvery  = 200 * time.Millisecond // at most, whoever asks
	keyRepeat = 500 * time.Millisecond // while somebody waits and none comes
)

// KeyRequests merges and paces the requests for key frames of one source's encodings, of which there are at most eight:
// browsers answer one request with a key frame of each encoding, other senders with one of that which is named. The zero
// value is ready to use.
type KeyRequests struct {
	wanted uint8 // bits by encoding
	sent   time.Time
}

// Ask notes that somebody needs a key frame of an encoding.
func (k *KeyRequests) Ask(encoding int) { k.wanted |= 1 << (encoding & 7) }

// StillWaiting says that somebody who asked before has not got one yet.
func (k *KeyRequests) StillWaiting(encoding int, now time.Time) {
	if now.Sub(k.sent) >= keyRepeat {
		k.Ask(encoding)
	}
}

// Came says that a key frame of an encoding has come.
func (k *KeyRequests) Came(encoding int) { k.wanted &^= 1 << (encoding & 7) }

// Due returns the highest encoding of which a key frame is to be asked for now, and takes that as done. Of others it is
// asked later, unless theirs have come with that one.
func (k *KeyRequests) Due(now time.Time) (encoding int, ok bool) {
	if k.wanted == 0 || now.Sub(k.sent) < keyEvery {
		return 0, false
	}
	encoding = bits.Len8(k.wanted) - 1
	k.Came(encoding)
	k.sent = now
	return encoding, true
}
