package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/stun/v3"
	"go.uber.org/goleak"

	"plenum/bridge/packet"
)

func identity(t testing.TB) *Identity {
	t.Helper()
	id, err := NewIdentity(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// wires are the two ends of a network for DTLS; count tells how many datagrams went to the server.
func wires(t testing.TB) (server, client *pipe, count *atomic.Int64) {
	count = new(atomic.Int64)
	server = newPipe(func(_ packet.Path, b []byte) { client.put(b) })
	client = newPipe(func(_ packet.Path, b []byte) {
		count.Add(1)
		server.put(b)
	})
	server.setPath(packet.Path{})
	client.setPath(packet.Path{})
	t.Cleanup(func() { server.Close(); client.Close() })
	return server, client, count
}

func TestHandshake(t *testing.T) {
	const unknown = dtls.SRTPProtectionProfile(0x0006) // NULL
	for _, test := range []struct {
		name    string
		offer   []dtls.SRTPProtectionProfile
		mtu     int
		spoil   bool
		profile Profile
		err     error
	}{
		{"both", []dtls.SRTPProtectionProfile{dtls.SRTP_AES128_CM_HMAC_SHA1_80, dtls.SRTP_AEAD_AES_128_GCM}, 1200, false, AES128GCM, nil},
		{"old", []dtls.SRTPProtectionProfile{dtls.SRTP_AES128_CM_HMAC_SHA1_80}, 1200, false, AES128CMSHA1_80, nil},
		{"unknown", []dtls.SRTPProtectionProfile{unknown}, 1200, false, 0, errors.New("any")},
		{"none", nil, 1200, false, 0, ErrProfile},
		// Chromium's ClientHello comes in two datagrams.
		{"fragments", []dtls.SRTPProtectionProfile{dtls.SRTP_AEAD_AES_128_GCM}, 130, false, AES128GCM, nil},
		{"wrong certificate", []dtls.SRTPProtectionProfile{dtls.SRTP_AEAD_AES_128_GCM}, 1200, true, 0, ErrFingerprint},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			server, client, count := wires(t)
			ours, theirs := identity(t), identity(t)
			want := []Fingerprint{{"sha-999", "??"}, theirs.Fingerprint}
			if test.spoil {
				want[1] = ours.Fingerprint
			}
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			options := []dtls.ClientOption{
				dtls.WithCertificates(theirs.certificate), dtls.WithInsecureSkipVerify(true), dtls.WithMTU(test.mtu),
				dtls.WithLoggerFactory(quiet),
			}
			if test.offer != nil {
				options = append(options, dtls.WithSRTPProtectionProfiles(test.offer...))
			}
			c, err := dtls.ClientWithOptions(client, nowhere, options...)
			if err != nil {
				t.Fatal(err)
			}
			var group sync.WaitGroup
			group.Go(func() { _ = c.HandshakeContext(ctx) })
			conn, s, err := handshake(ctx, server, ours, false, want)
			if test.err == nil != (err == nil) || test.err == ErrProfile && !errors.Is(err, ErrProfile) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			if err == nil {
				if s.profile != test.profile {
					t.Errorf("profile %v", s.profile)
				}
				group.Wait()
				theirs, err := export(c, true)
				if err != nil || !bytes.Equal(theirs.localKey, s.remoteKey) || !bytes.Equal(theirs.remoteSalt, s.localSalt) {
					t.Errorf("the two sides have different keys, %v", err)
				}
				conn.Close()
			} else {
				t.Log(err)
			}
			if test.mtu < 200 && count.Load() < 4 {
				t.Errorf("only %d datagrams: nothing was fragmented", count.Load())
			}
			cancel()
			c.Close()
			group.Wait()
		})
	}
}

func TestVerify(t *testing.T) {
	id := identity(t)
	der := id.certificate.Certificate[0]
	for name, h := range hashes {
		if err := verify([]Fingerprint{{name, fingerprint(h, der)}}, der); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	lower := Fingerprint{"SHA-256", string(bytes.ToLower([]byte(id.Fingerprint.Value)))}
	if err := verify([]Fingerprint{lower}, der); err != nil {
		t.Errorf("other case: %v", err)
	}
	for _, f := range [][]Fingerprint{nil, {{"md5", "00"}}, {{"sha-256", ""}}, {{"sha-1", id.Fingerprint.Value}}} {
		if err := verify(f, der); !errors.Is(err, ErrFingerprint) {
			t.Errorf("%v: %v", f, err)
		}
	}
	if !id.Stale(time.Now().Add(25*time.Hour)) || id.Stale(time.Now().Add(time.Hour)) {
		t.Error("renewed at the wrong time")
	}
}

func TestRemoteCheck(t *testing.T) {
	f := []Fingerprint{{"sha-256", "AB"}}
	for _, test := range []struct {
		r  Remote
		ok bool
	}{
		{Remote{}, true},
		{Remote{Ufrag: "u", Pwd: "p"}, true},
		{Remote{Ufrag: "u"}, false},
		{Remote{Pwd: "p"}, false},
		{Remote{Fingerprints: f, Setup: "active"}, true},
		{Remote{Fingerprints: f, Setup: "passive"}, true},
		{Remote{Fingerprints: f, Setup: "actpass"}, false},
		{Remote{Fingerprints: f}, false},
		{Remote{Fingerprints: []Fingerprint{{"md5", "AB"}}, Setup: "active"}, false},
		{Remote{Ufrag: string(make([]byte, 300)), Pwd: "p"}, false},
	} {
		if err := test.r.Check(); err == nil != test.ok || err != nil && !errors.Is(err, ErrRemote) {
			t.Errorf("%+v: %v", test.r, err)
		}
	}
}

// A bench is a Transport with a peer that is played by hand: connected by ICE, with SRTP keys put in.
type bench struct {
	*Transport
	out    packet.Outbox
	now    time.Time
	path   packet.Path
	sealer *Sealer // of the peer
	opener *Opener
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := earlyBench(t)
	b.key()
	return b
}

// earlyBench has no keys yet.
func earlyBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{now: time.Now(), path: packet.Path{Remote: netip.MustParseAddrPort("198.51.100.7:4000")}}
	var err error
	b.Transport, err = New(Config{
		Controlling: true, Identity: identity(t), Sockets: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:10000")}, Tag: 1,
		Outbox: &b.out, Send: func(packet.Path, []byte) {}, Post: func(func(time.Time)) bool { return true }, OnState: func(State) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetRemote(Remote{Ufrag: "them", Pwd: "their password is long"}, b.now); err != nil {
		t.Fatal(err)
	}
	b.comeFrom(t, b.path)
	if _, ok := b.Path(); !ok {
		t.Fatal("no path")
	}
	b.sealer, b.opener = pair(t, AES128GCM)
	return b
}

func (b *bench) key() {
	salt := testSalt[:AES128GCM.saltBytes()]
	b.install(secret{profile: AES128GCM, localKey: testKey, localSalt: salt, remoteKey: testKey, remoteSalt: salt})
}

// comeFrom has the peer check from path and answer our check there.
func (b *bench) comeFrom(t testing.TB, path packet.Path) {
	t.Helper()
	m := stun.MustBuild(stun.TransactionID, stun.BindingRequest, stun.NewUsername(b.Credentials().Ufrag+":them"),
		stun.NewShortTermIntegrity(b.Credentials().Pwd), stun.Fingerprint)
	if k := b.give(path, m.Raw); k != Authentic {
		t.Fatalf("check: %v", k)
	}
	b.Tick(b.now)
	for _, d := range b.out.Datagrams {
		q := stun.Message{Raw: d.Data}
		if q.Decode() != nil || q.Type != stun.BindingRequest || d.Path != path {
			continue
		}
		r := stun.MustBuild(stun.NewTransactionIDSetter(q.TransactionID), stun.BindingSuccess,
			stun.NewShortTermIntegrity("their password is long"), stun.Fingerprint)
		if k := b.give(path, r.Raw); k != Proven {
			t.Fatalf("answer: %v", k)
		}
		break
	}
	b.out.Reset()
}

func (b *bench) give(path packet.Path, data []byte) Kind {
	var buf packet.Buf
	buf.Path = path
	buf.Data = buf.Space()[:copy(buf.Space(), data)]
	return b.Receive(&buf, b.now)
}

func (b *bench) media(t testing.TB, seq uint16) []byte {
	t.Helper()
	p, err := b.sealer.RTP(nil, header(seq, 7), []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestReceive(t *testing.T) {
	b := newBench(t)
	good := b.media(t, 1)
	if k := b.give(b.path, good); k != RTP {
		t.Errorf("good packet: %v", k)
	}
	if k := b.give(b.path, good); k != None || b.Replay != 1 {
		t.Errorf("replayed packet: %v", k)
	}
	bad := b.media(t, 2)
	bad[len(bad)-1] ^= 1
	if k := b.give(b.path, bad); k != None || b.Auth != 1 {
		t.Errorf("forged packet: %v", k)
	}
	report, err := b.sealer.RTCP(nil, []byte{0x80, 201, 0, 1, 0, 0, 0, 7})
	if err != nil {
		t.Fatal(err)
	}
	if k := b.give(b.path, report); k != RTCP {
		t.Errorf("report: %v", k)
	}
	for _, junk := range [][]byte{{}, {0x80}, {0x80, 96}, {100, 1, 2}, {200, 1, 2}, {20}, {22, 1, 2}, {0, 1, 0, 0}, bytes.Repeat([]byte{0x9f}, 40)} {
		if k := b.give(b.path, junk); k != None {
			t.Errorf("% x: %v", junk, k)
		}
	}
	stranger := packet.Path{Remote: netip.MustParseAddrPort("203.0.113.66:666")}
	full := b.PipeFull
	if b.give(stranger, []byte{22, 254, 253, 0}); b.PipeFull != full+1 || b.pipe.in.Count() > 1 {
		t.Error("DTLS from a stranger was kept")
	}
}

// A client that moves is followed: what we send goes where its media comes from.
func TestMove(t *testing.T) {
	b := newBench(t)
	seq := uint16(0)
	hear := func(path packet.Path, n int) {
		for range n {
			seq++
			b.now = b.now.Add(20 * time.Millisecond)
			if k := b.give(path, b.media(t, seq)); k != RTP {
				t.Fatalf("seq %d: %v", seq, k)
			}
		}
	}
	hear(b.path, 10)
	moved := packet.Path{Remote: netip.MustParseAddrPort("203.0.113.5:5000")}
	b.comeFrom(t, moved)
	hear(moved, 3)
	if p, _ := b.Path(); p != b.path {
		t.Error("moved on the first packets, which reordering may explain")
	}
	hear(moved, 20)
	if p, _ := b.Path(); p != moved {
		t.Errorf("still at %v", p)
	}
	b.SendRTP(header(1, 9), []byte("x"))
	if d := b.out.Datagrams[b.out.Len()-1]; d.Path != moved {
		t.Errorf("sent to %v", d.Path)
	}
}

// Media that overtakes the end of the handshake is kept until there are keys, not without bound, and of nobody else.
func TestEarlyMedia(t *testing.T) {
	b := earlyBench(t)
	stranger := packet.Path{Remote: netip.MustParseAddrPort("203.0.113.66:666")}
	for seq := range uint16(2 * maxEarly) {
		p := b.media(t, seq)
		b.give(stranger, p)
		if k := b.give(b.path, p); k != None {
			t.Fatalf("without keys: %v", k)
		}
	}
	b.key()
	early := b.TakeEarly()
	if len(early) != maxEarly {
		t.Errorf("%d packets were kept", len(early))
	}
	for i, p := range early {
		if k := b.Receive(p, b.now); k != RTP || binary.BigEndian.Uint16(p.Data[2:]) != uint16(i) {
			t.Fatalf("packet %d: %v, % x", i, k, p.Data)
		}
	}
	if b.give(b.path, b.media(t, 1000)); len(b.TakeEarly()) != 0 {
		t.Error("kept with keys")
	}
}

// Early DTLS is kept, but not without bound.
func TestEarlyBounded(t *testing.T) {
	b := newBench(t)
	for range 1000 {
		b.give(b.path, bytes.Repeat([]byte{22}, 1200))
	}
	if n := b.pipe.in.Count(); n == 0 || n > pipeDatagrams {
		t.Errorf("%d datagrams wait", n)
	}
	if b.PipeFull == 0 {
		t.Error("nothing was counted")
	}
}

func TestTransportAllocations(t *testing.T) {
	b := newBench(t)
	h, payload := header(0, 9), make([]byte, 1100)
	var bufs [64]packet.Buf
	const runs = 500
	var sealed [][]byte
	for seq := range uint16(64 * (runs + 2)) {
		sealed = append(sealed, b.media(t, seq))
	}
	next, seq := 0, uint16(0)
	n := testing.AllocsPerRun(runs, func() {
		for i := range bufs {
			d := &bufs[i]
			d.Path = b.path
			d.Data = d.Space()[:copy(d.Space(), sealed[next])]
			next++
			if k := b.Receive(d, b.now); k != RTP {
				t.Fatal(k)
			}
			seq++
			binary.BigEndian.PutUint16(h[2:], seq)
			b.SendRTP(h, payload)
		}
		b.out.Reset()
	})
	if n != 0 {
		t.Errorf("%v allocations for 64 packets in and out", n)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte{0x80, 96, 0, 1})
	f.Add([]byte{22, 254, 253, 0, 0})
	f.Add([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42})
	b := newBench(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		if k := b.give(b.path, data); k == RTP || k == RTCP {
			t.Errorf("%x passed for %v", data, k)
		}
		b.out.Reset()
	})
}
