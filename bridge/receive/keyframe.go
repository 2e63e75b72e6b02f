package receive

import "time"

const (
	keyEvery  = 200 * time.Millisecond // at most, whoever asks
	keyRepeat = 500 * time.Millisecond // while somebody waits and none comes
)

// KeyRequests merges and paces the requests for a key frame of one source. The zero value is ready to use.
type KeyRequests struct {
	wanted bool
	sent   time.Time
}

// Ask notes that somebody needs a key frame.
func (k *KeyRequests) Ask() { k.wanted = true }

// StillWaiting says that somebody who asked before has not got one yet.
func (k *KeyRequests) StillWaiting(now time.Time) {
	if now.Sub(k.sent) >= keyRepeat {
		k.wanted = true
	}
}

// Due reports whether a request is to be sent now, and takes it as sent.
func (k *KeyRequests) Due(now time.Time) bool {
	if !k.wanted || now.Sub(k.sent) < keyEvery {
		return false
	}
	k.wanted, k.sent = false, now
	return true
}
