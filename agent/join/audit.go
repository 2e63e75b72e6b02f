package join

import (
	"context"
	"encoding/json"
	"fmt"
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
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
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
