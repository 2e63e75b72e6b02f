package roster

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/google/renameio/v2"
)

// A Book holds the newest record of every host. Its methods may be called from any goroutine.
type Book struct {
	key ed25519.PublicKey

	mu      sync.Mutex
	entries map[string]entry
	refused map[string]uint64
}

type entry struct {
	record   Record
	envelope []byte
}

// maxHosts bounds what a source may make a host remember.
const maxHosts = 1024

var (
	// ErrOlder is a record that was true once: replayed, or from a source that lags.
	ErrOlder = errors.New("older than the record that is known")
	// ErrConflict is a second record for an epoch, or one that takes another host's address or key.
	ErrConflict = errors.New("contradicts another record")
	// ErrMisplaced is a record filed under another host's name.
	ErrMisplaced = errors.New("filed under another host's name")
	// ErrFull is one host more than a cluster has.
	ErrFull = fmt.Errorf("more than %d hosts", maxHosts)
)

// reasons are the values of a refusal's label.
var reasons = map[error]string{ErrForged: "forged", ErrMalformed: "malformed", ErrOlder: "older",
	ErrConflict: "conflict", ErrMisplaced: "misplaced", ErrFull: "full"}

// NewBook is an empty book of records that key has signed.
func NewBook(key ed25519.PublicKey) *Book {
	b := &Book{key: key, entries: map[string]entry{}, refused: map[string]uint64{}}
	for _, r := range reasons {
		b.refused[r] = 0
	}
	return b
}

// Accept enters a record, filed under the name host (empty where the place has no name), and reports whether
// anything changed. What is known already is neither a change nor refused.
func (b *Book) Accept(host string, envelope []byte) (changed bool, err error) {
	r, err := Verify(b.key, envelope)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		changed, err = b.enterLocked(host, r, envelope)
	}
	for sentinel, reason := range reasons {
		if errors.Is(err, sentinel) {
			b.refused[reason]++
		}
	}
	if err != nil && host != "" {
		err = fmt.Errorf("record of %s: %w", host, err)
	}
	return changed, err
}

func (b *Book) enterLocked(host string, r Record, envelope []byte) (bool, error) {
	if host != "" && r.Host != host {
		return false, fmt.Errorf("%w: %s", ErrMisplaced, r.Host)
	}
	known, ok := b.entries[r.Host]
	switch {
	case !ok && len(b.entries) >= maxHosts:
		return false, ErrFull
	case ok && r.Epoch < known.record.Epoch:
		return false, fmt.Errorf("%w: epoch %d after %d", ErrOlder, r.Epoch, known.record.Epoch)
	case ok && r.Epoch == known.record.Epoch:
		if same(r, known.record) {
			return false, nil
		}
		return false, fmt.Errorf("%w: two of epoch %d", ErrConflict, r.Epoch)
	}
	for name, e := range b.entries {
		o := e.record
		if name != r.Host && !r.Revoked && !o.Revoked && (o.Control == r.Control || o.Media == r.Media || bytes.Equal(o.WireGuard, r.WireGuard)) {
			return false, fmt.Errorf("%w: %s has its address or key", ErrConflict, name)
		}
	}
	b.entries[r.Host] = entry{r, slices.Clone(envelope)}
	return true, nil
}

// same compares what two records say; signatures may differ.
func same(a, b Record) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// Records returns all records, revoked ones too, sorted by host.
func (b *Book) Records() []Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]Record, 0, len(b.entries))
	for _, host := range slices.Sorted(maps.Keys(b.entries)) {
		all = append(all, b.entries[host].record)
	}
	return all
}

// Len is how many records there are.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.entries)
}

// Envelope returns the signed record of a host, or nil.
func (b *Book) Envelope(host string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.entries[host].envelope
}

// At returns the record of the host that has the address on either plane.
func (b *Book) At(a netip.Addr) (Record, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		if !e.record.Revoked && (e.record.Control == a || e.record.Media == a) {
			return e.record, true
		}
	}
	return Record{}, false
}

// Refused counts refusals by reason since the start.
func (b *Book) Refused() map[string]uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.refused)
}

// Save writes the book to a file, whole: without it, a host that restarts would believe an old record.
func (b *Book) Save(path string) error {
	b.mu.Lock()
	hosts := map[string]json.RawMessage{}
	for host, e := range b.entries {
		hosts[host] = e.envelope
	}
	b.mu.Unlock()
	text, err := json.Marshal(Listing{Hosts: hosts})
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, text, 0o600)
}

// Restore enters what Save wrote; a file that is missing is an empty book. Signatures are verified again.
func (b *Book) Restore(path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	l, err := ParseListing(text)
	if err != nil {
		return err
	}
	var all []error
	for host, envelope := range l.Hosts {
		if _, err := b.Accept(host, envelope); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}
