package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"time"
)

// ringFile is the gossip keys of this host's Consul, the one in use first. Consul writes it, and once it is there the
// key in its configuration means nothing to it.
const ringFile = stateDir + "/consul/serf/local.keyring"

// ring is empty before Consul has begun.
func (w *work) ring() (keys []string, err error) {
	b, err := w.host.Read(ringFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &keys)
	}
	return keys, err
}

// follow notes the gossip key that Consul uses, so that one that is started from nothing begins with it.
func (w *work) follow() error {
	keys, err := w.ring()
	if err != nil || len(keys) == 0 || keys[0] == w.answer.Consul.Gossip {
		return err
	}
	a := w.answer
	a.Consul.Gossip = keys[0]
	return w.keep(a)
}

// rekey is for a host whose Consul finds no leader though its networks are up: while it was away the gossip key may have
// become another, and nobody understands it any more. It asks the join service, which needs no Consul of this host.
func (w *work) rekey(ctx context.Context) error {
	c, r, err := w.client()
	if err != nil {
		return err
	}
	r.Facts = w.factsFor(w.release)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	a, err := c.Renew(ctx, r)
	if err != nil {
		return err
	}
	if err := w.keep(a); err != nil {
		return err
	}
	keys, err := w.ring()
	if err != nil || len(keys) == 0 || keys[0] == a.Consul.Gossip {
		return err
	}
	if err := w.host.Write(ringFile, marshal([]string{a.Consul.Gossip}), 0o600); err != nil {
		return err
	}
	w.hand.say("the gossip key is another: start Consul anew with it")
	return w.startUnit(ctx, "plenum-consul")
}

// estranged says when a host that has found no leader for this long asks whether the gossip key is another: soon, and
// then ever more rarely, for each time costs a certificate.
type estranged struct {
	since time.Time     // no leader
	next  time.Duration // after since
}

const estrangedAfter = 20 * time.Second

// due reports whether it is time; leader is whether Consul knows one at now.
func (e *estranged) due(leader bool, now time.Time) bool {
	switch {
	case leader:
		*e = estranged{}
	case e.since.IsZero():
		*e = estranged{now, estrangedAfter}
	case now.Sub(e.since) >= e.next:
		e.next = min(e.next*5, e.next+6*time.Hour)
		return true
	}
	return false
}
