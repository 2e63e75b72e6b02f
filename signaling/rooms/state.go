package rooms

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// A state is a file with the id of a session, which one process at a time has: a restarted shard finds it there,
// and finds the lock free only when its predecessor has ended. A nil state keeps nothing.
type state struct{ f *os.File }

func openState(path string) (*state, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state of the shard: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errors.New("another process of this shard is running: stop it, or give this one a state file and a name of its own")
		}
		return nil, fmt.Errorf("state file %s: %w", path, err)
	}
	return &state{f}, nil
}

// session returns the id that was saved, or nothing.
func (s *state) session() string {
	if s == nil {
		return ""
	}
	var b [256]byte
	n, _ := s.f.ReadAt(b[:], 0)
	id, whole := strings.CutSuffix(string(b[:n]), "\n")
	if !whole { // written in part: it will expire by itself
		return ""
	}
	return id
}

// save writes the id in place, as the lock is on this file and not on its name.
func (s *state) save(id string) error {
	if s == nil {
		return nil
	}
	if id != "" {
		id += "\n"
	}
	err := s.f.Truncate(0)
	if err == nil {
		_, err = s.f.WriteAt([]byte(id), 0)
	}
	if err == nil {
		err = s.f.Sync()
	}
	return err
}

func (s *state) close() {
	if s != nil {
		s.f.Close()
	}
}
