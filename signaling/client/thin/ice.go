package thin

import (
	"crypto/rand"
	"encoding/hex"
	"time"

	"github.com/pion/stun/v3"
)

const (
	checkEvery   = 50 * time.Millisecond // until a pair is nominated
	consentEvery = 5 * time.Second       // after that
)

// An agent is one side of ICE, mostly the controlled one, with one host candidate towards one address: what a client of a
// bridge with a public address comes down to. The receiving thread owns it.
type agent struct {
	ufrag, pwd             string
	remoteUfrag, remotePwd string
	controlling            bool
	nominated              bool
	next                   time.Time
	local, remote          stun.MessageIntegrity
}

func newAgent() agent {
	var b [14]byte
	_, _ = rand.Read(b[:])
	s := hex.EncodeToString(b[:])
	return agent{ufrag: s[:4], pwd: s[4:], local: stun.NewShortTermIntegrity(s[4:])}
}

// due reports whether check has something to send.
func (a *agent) due(now time.Time) bool { return a.remotePwd != "" && !now.Before(a.next) }

// check returns the request that is due, or nil.
func (a *agent) check(now time.Time) []byte {
	if !a.due(now) {
		return nil
	}
	a.next = now.Add(checkEvery)
	if a.nominated {
		a.next = now.Add(consentEvery)
	}
	if a.remote == nil {
		a.remote = stun.NewShortTermIntegrity(a.remotePwd)
	}
	role := []stun.Setter{stun.RawAttribute{Type: stun.AttrICEControlled, Value: []byte{0, 0, 0, 0, 0, 0, 0, 1}}}
	if a.controlling {
		role = []stun.Setter{stun.RawAttribute{Type: stun.AttrICEControlling, Value: []byte{0, 0, 0, 0, 0, 0, 0, 1}}, stun.RawAttribute{Type: stun.AttrUseCandidate}}
	}
	m, err := stun.Build(append(append([]stun.Setter{stun.TransactionID, stun.BindingRequest,
		stun.NewUsername(a.remoteUfrag + ":" + a.ufrag)}, role...),
		stun.RawAttribute{Type: stun.AttrPriority, Value: []byte{0x6e, 0xff, 0xff, 0xff}},
		a.remote, stun.Fingerprint)...)
	if err != nil {
		return nil
	}
	return m.Raw
}

// handle takes a STUN message and returns the answer, or nil.
func (a *agent) handle(b []byte, from *stun.XORMappedAddress) []byte {
	m := stun.New()
	if _, err := m.Write(b); err != nil {
		return nil
	}
	if a.controlling && m.Type == stun.BindingSuccess && a.remote != nil && a.remote.Check(m) == nil {
		a.nominated = true // every check nominates
		return nil
	}
	if m.Type != stun.BindingRequest || a.local.Check(m) != nil {
		return nil
	}
	if m.Contains(stun.AttrUseCandidate) {
		a.nominated = true
	}
	answer, err := stun.Build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess, from, a.local, stun.Fingerprint)
	if err != nil {
		return nil
	}
	return answer.Raw
}
