package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"

	"plenum/wire/jid"
	"plenum/wire/xmpp"
)

// A guest's session can outlive the shard that had it. Its resumption token holds, sealed, all that another
// process with the same key needs to go on: the address, and how many of the client's stanzas were handled.
//
//	token = id of the session here (24 hexadecimal digits) · base64url(nonce · AES-GCM(payload))
//	payload = version · issued, unix seconds · handled · address
//
// The count has to be one that the client can have heard of (XEP-0198, section 5): at least what it was told
// last, at most what it sent. So each acknowledgement is preceded by a new <enabled/> with a token that
// holds its count; the stock client keeps the newest token and needs no other change. What the shard that is
// gone had handled after that is sent again, to one that knows nothing of it.
//
// Only the stream goes on. Rooms are joined anew, which is left to the Handler.

const (
	idChars = 24
	// tokenLife is how old a token may be: longer than most laptops sleep through a meeting.
	tokenLife    = 4 * time.Hour
	tokenVersion = 1
)

// errToken says that a token is not one of ours, or too old.
var errToken = errors.New("no such session")

// A sealer makes and opens tokens. nil makes tokens that only this process knows.
type sealer struct{ cipher.AEAD }

// newSealer returns a sealer for a secret, or nil without one.
func newSealer(secret []byte) *sealer {
	if len(secret) == 0 {
		return nil
	}
	key := sha256.Sum256(append([]byte("plenum resumption "), secret...))
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("session: " + err.Error()) // only for keys of another length
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("session: " + err.Error())
	}
	return &sealer{aead}
}

// A testament is what a token says.
type testament struct {
	id      string
	jid     jid.JID
	handled uint32
}

// seal makes the token of a session at now.
func (s *sealer) seal(t testament, now time.Time) string {
	if s == nil {
		return t.id
	}
	b := []byte{tokenVersion}
	b = binary.BigEndian.AppendUint64(b, uint64(now.Unix()))
	b = binary.BigEndian.AppendUint32(b, t.handled)
	b = append(b, t.jid.String()...)
	return t.id + base64.RawURLEncoding.EncodeToString(s.Seal(nil, nil, b, []byte(t.id)))
}

// open reads a token at now.
func (s *sealer) open(token string, now time.Time) (testament, error) {
	if s == nil || len(token) <= idChars || len(token) > 1024 {
		return testament{}, errToken
	}
	t := testament{id: token[:idChars]}
	sealed, err := base64.RawURLEncoding.DecodeString(token[idChars:])
	if err != nil {
		return t, errToken
	}
	b, err := s.Open(nil, nil, sealed, []byte(t.id))
	if err != nil || len(b) < 13 || b[0] != tokenVersion {
		return t, errToken
	}
	issued := time.Unix(int64(binary.BigEndian.Uint64(b[1:])), 0)
	if age := now.Sub(issued); age > tokenLife || age < -tokenLife { // the clock of the other shard
		return t, errToken
	}
	t.handled = binary.BigEndian.Uint32(b[9:])
	if t.jid, err = jid.Parse(string(b[13:])); err != nil {
		return t, errToken
	}
	return t, nil
}

// sessionID is the part of a token by which the process that made it finds the session.
func sessionID(token string) string { return token[:min(len(token), idChars)] }

// enabledLocked is the element that tells the client its token as of now.
func (s *Session) enabledLocked() *xmpp.Element {
	token := s.srv.sealer.seal(testament{s.token, s.id.JID, s.in}, time.Now())
	return xmpp.New(xmpp.NSSM, "enabled", "id", token, "resume", "true").SetInt("max", int64(s.hibernation().Seconds()))
}

// revive makes the session of a token that another process gave out, for the client on c that has been
// handed h stanzas by it.
func (srv *Server) revive(c *conn, bare jid.JID, token string, h uint32) (*Session, error) {
	t, err := srv.sealer.open(token, time.Now())
	if err != nil || t.jid.Bare() != bare || bare.Domain() != srv.cfg.Domain {
		return nil, errToken
	}
	id := c.id
	id.JID = t.jid
	s := &Session{id: id, srv: srv, owner: c, done: make(chan struct{}), taken: true, revived: true, token: t.id, in: t.handled, life: srv.life()}
	s.out.maxFrames, s.out.maxBytes = srv.cfg.QueueFrames, srv.cfg.QueueBytes
	s.out.managed, s.out.acked = true, h
	s.out.control = append(s.out.control, resumed(token, t.handled))
	s.renews()
	srv.mu.Lock()
	closed, alive := srv.closed, srv.byJID[t.jid] != nil || srv.byToken[t.id] != nil
	if !closed && !alive {
		srv.byJID[t.jid], srv.byToken[t.id] = s, s
	}
	srv.mu.Unlock()
	switch {
	case closed:
		return nil, streamError("system-shutdown")
	case alive:
		return nil, errToken
	}
	srv.revived.Add(1)
	s.log("session revived")
	return s, nil
}

// renews makes every acknowledgement of s come with a token, if tokens are worth something elsewhere.
func (s *Session) renews() {
	if s.srv.sealer != nil && s.id.Account == "" {
		s.out.renew = func() []byte { return s.enabledLocked().Append(nil) }
	}
}

func resumed(token string, handled uint32) []byte {
	return xmpp.New(xmpp.NSSM, "resumed", "previd", token).SetInt("h", int64(handled)).Append(nil)
}
