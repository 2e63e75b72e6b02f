package rooms

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"sync"
	"time"

	"plenum/wire/jid"
)

// nameLife is how long rooms that open have names under one key.
const nameLife = 24 * time.Hour

// LogNames are what rooms are called in logs: an HMAC, for a plain hash falls to a dictionary, under a key that never
// leaves this process and that is forgotten after a day, so that old logs tell nothing even to who has the cluster's key.
// The zero value is ready to use, by any goroutine.
type LogNames struct {
	now func() time.Time // for tests

	mu    sync.Mutex
	key   [32]byte
	until time.Time
}

// Name returns what a room is called in logs from now on.
func (n *LogNames) Name(room jid.JID) string {
	now := time.Now
	if n.now != nil {
		now = n.now
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if at := now(); at.After(n.until) {
		rand.Read(n.key[:]) // never fails
		n.until = at.Add(nameLife)
	}
	m := hmac.New(sha256.New, n.key[:])
	m.Write([]byte(room.String()))
	return hex.EncodeToString(m.Sum(nil)[:6])
}
