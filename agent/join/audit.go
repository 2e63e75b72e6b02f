package join

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// An Event is a line of the audit file: who was let in or refused, and which admin stands for it.
type Event struct {
	Time   time.Time `json:"time"`
	What   string    `json:"what"`             // enrol, renew, leave, revoke, token-create, …
	Host   string    `json:"host,omitempty"`   //
	From   string    `json:"from,omitempty"`   // address on the underlay
	Token  string    `json:"token,omitempty"`  // its ID
	Admin  string    `json:"admin,omitempty"`  // who made the token, or who asked
	Reason string    `json:"reason,omitempty"` // of a refusal; empty is granted
	Text   string    `json:"text,omitempty"`   //
	Alarm  bool      `json:"alarm,omitempty"`  // somebody should look: a token used by a second key, a revoked host that comes back
}

// audit is a file of events, on disk before anybody is answered.
type audit struct {
	log *slog.Logger

	mu   sync.Mutex
	file *os.File
}

func openAudit(path string, log *slog.Logger) (*audit, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// A line that lost power half written ends here, and spoils no other.
	var last [1]byte
	if s, err := f.Stat(); err == nil && s.Size() > 0 {
		if _, err := f.ReadAt(last[:], s.Size()-1); err == nil && last[0] != '\n' {
			_, _ = f.WriteString("\n")
		}
	}
	return &audit{log: log, file: f}, nil
}

// write adds an event. An error is a disk that is full or broken: the caller grants nothing then.
func (a *audit) write(e Event) error {
	level := slog.LevelInfo
	if e.Alarm {
		level = slog.LevelError
	} else if e.Reason != "" {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, e.What, "host", e.Host, "from", e.From, "token", e.Token, "admin", e.Admin, "reason", e.Reason, "text", e.Text)
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.file.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if err := a.file.Sync(); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

func (a *audit) close() error { return a.file.Close() }

const auditFile = "audit.jsonl"

// Events are the last n lines, at most, of the audit file in a service's folder, oldest first. Lines that were torn are
// left out, and those older than the last 64 KiB.
func Events(dir string, n int) (all []Event, err error) {
	f, err := os.Open(filepath.Join(dir, auditFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, s.Size()-64<<10), 64<<10))
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(b) {
		var e Event
		if json.Unmarshal(line, &e) == nil {
			all = append(all, e)
		}
	}
	return all[max(0, len(all)-n):], nil
}
