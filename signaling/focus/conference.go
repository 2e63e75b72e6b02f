package focus

import "time"

// A Conference is one conference. It is used by one goroutine at a time.
type Conference struct{ cfg Config }

// New makes a conference that nobody has joined yet.
func New(cfg Config, now time.Time) *Conference { return &Conference{cfg: cfg} }

// Step takes one event and returns what is to be done, in order.
func (c *Conference) Step(now time.Time, ev Event) []Action { return nil }
