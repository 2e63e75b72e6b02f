package roster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"
)

// A Listing is what a source knows: signed records and unsigned hints, by host.
type Listing struct {
	Hosts     map[string]json.RawMessage `json:"hosts"`               // envelopes
	Endpoints map[string]Endpoints       `json:"endpoints,omitempty"` // hints
}

// Endpoints are where a host says it can be reached on the underlay. Nobody signs them: a wrong one costs a
// handshake that fails, never a tunnel to somebody else.
type Endpoints struct {
	Control []netip.AddrPort `json:"control,omitempty"`
	Media   []netip.AddrPort `json:"media,omitempty"`
}

const (
	maxListingBytes = maxHosts * 4 << 10
	maxEndpoints    = 16
)

// ParseListing reads a Listing; it verifies nothing.
func ParseListing(text []byte) (Listing, error) {
	var l Listing
	if len(text) > maxListingBytes {
		return l, fmt.Errorf("%w: larger than %d bytes", ErrMalformed, maxListingBytes)
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return Listing{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if len(l.Hosts) > maxHosts || len(l.Endpoints) > maxHosts {
		return Listing{}, ErrFull
	}
	for host, e := range l.Endpoints {
		e.trim()
		l.Endpoints[host] = e
	}
	return l, nil
}

// trim forgets what nobody can need.
func (e *Endpoints) trim() {
	e.Control = e.Control[:min(len(e.Control), maxEndpoints)]
	e.Media = e.Media[:min(len(e.Media), maxEndpoints)]
}

// A Source delivers a listing at once and whenever it may have changed, until ctx ends. Errors are for the
// log; the source goes on by itself, and what was known stays known.
type Source interface {
	Watch(ctx context.Context, deliver func(Listing, error))
}

// A File is a source for a host without a catalog, and for tests: a Listing as JSON, looked at every second.
type File struct {
	Path  string
	Every time.Duration // default 1 s
}

// Watch implements Source.
func (f File) Watch(ctx context.Context, deliver func(Listing, error)) {
	every := f.Every
	if every == 0 {
		every = time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last os.FileInfo
	failed := false
	for {
		info, err := os.Stat(f.Path)
		switch {
		case err != nil:
			if !failed {
				deliver(Listing{}, err)
			}
			last, failed = nil, true
		case last == nil || !os.SameFile(last, info) || !last.ModTime().Equal(info.ModTime()) || last.Size() != info.Size():
			last, failed = info, false
			deliver(f.read())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (f File) read() (Listing, error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return Listing{}, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxListingBytes+1))
	if err != nil {
		return Listing{}, err
	}
	return ParseListing(text)
}
