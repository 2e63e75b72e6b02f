// Package peer is the media half of a headless participant: one WebRTC connection to a bridge on the
// components that pion/webrtc v3 is made of (ICE, DTLS, SRTP, SCTP), without its PeerConnection, because
// Jingle is not SDP and SSRC rewriting delivers streams that no description announced. It knows nothing
// of XMPP; package client translates.
//
//	         ┌ run ───────────────── ICE → DTLS → SRTP keys → SCTP → channel reads
//	Peer ────┼ read ── datagrams ──► DTLS pipe │ SRTP: Ledger │ SRTCP: senders
//	         └ pace ── every 20 ms ► audio, video, feedback
//
// It is an independent stack at the other end of every test of our bridge, and it is careful to be what a
// browser is: controlled ICE without signalled candidates, DTLS client, retransmission by RTX, pictures
// that really decode.
package peer

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/dtls/v2"
	"github.com/pion/dtls/v2/pkg/crypto/fingerprint"
	"github.com/pion/dtls/v2/pkg/crypto/selfsign"
	"github.com/pion/ice/v2"
	"github.com/pion/interceptor/pkg/twcc"
	"github.com/pion/logging"
	"github.com/pion/sctp"
	"github.com/pion/srtp/v2"
	"github.com/pion/transport/v2/packetio"
)

var (
	// ErrFingerprint says that the bridge's certificate is not the one that was signalled.
	ErrFingerprint = errors.New("certificate does not match the fingerprint")
	// ErrNoChannel is returned by SendMessage before the data channel is open and after it closed.
	ErrNoChannel = errors.New("no bridge channel")
)

// The bridge channel's name inside SCTP.
const (
	channelLabel    = "JVB data channel"
	channelProtocol = "http://jitsi.org/protocols/colibri"
	maxMessageBytes = 256 << 10
)

const (
	maxDatagram  = 2048
	pipeBytes    = 512 << 10             // DTLS datagrams waiting for the handshake or SCTP
	checkEvery   = 50 * time.Millisecond // Chromium's pace of checks
	disconnected = 5 * time.Second
	failed       = 11 * time.Second // after disconnected; browsers give up 15…17 s after the last packet
)

// A State is how far a peer is. It goes up to StateConnected, may fall to StateInterrupted and come
// back, and ends in StateFailed or StateClosed.
type State uint8

// The states, in the order of a good start.
const (
	StateNew         State = iota
	StateChecked           // ICE has a pair
	StateConnected         // DTLS is done, media flows
	StateInterrupted       // nothing heard for 5 s
	StateFailed            // given up
)

func (s State) String() string {
	return [...]string{"new", "checked", "connected", "interrupted", "failed"}[s]
}

// A Description is one side's transport: ICE credentials and the hash of the DTLS certificate.
type Description struct {
	Ufrag, Pwd        string
	Hash, Fingerprint string // "sha-256", "AB:CD:…"
	Setup             string // "active", "passive", "actpass"
	Candidates        []Candidate
	SCTP              int // port; 0 = no data channel
}

// A Candidate is an address to try.
type Candidate struct {
	IP         string
	Port       int
	Type       string // "host", "srflx", "relay"
	Foundation string
	Priority   uint32
}

// Media holds the negotiated numbers. Extension ids of 0 are not in use.
type Media struct {
	Opus, VP8 uint8            // payload types that we send; 0 = do not send
	Video     map[uint8]string // payload types of video, by name in lower case
	RTX       map[uint8]uint8  // payload type of RTX → that of the original

	AudioLevel, AbsSendTime, TransportCC, MID, Descriptor uint8
}

// Config describes one peer.
type Config struct {
	Remote  Description
	Media   Media
	Network *Network     // required
	Ledger  *Ledger      // required: where received media is counted
	Log     *slog.Logger // required

	// Adapt has congestion control decide how much is sent.
	Adapt bool

	controlling bool // leads ICE; bridges do, so only tests of two peers set it

	// Callbacks come on goroutines of the peer and must not call Close.
	OnState   func(State, error)
	OnChannel func(open bool)
	OnMessage func(text []byte) // text is the callee's
}

// Marks are moments of a start; zero when not reached.
type Marks struct{ Checked, Connected, Channel time.Time }

// A Peer is one connection. Its methods may be called from any goroutine.
type Peer struct {
	cfg    Config
	local  Description
	cert   tls.Certificate
	agent  *ice.Agent
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// owned by the goroutine read after it was started
	opened *srtp.Context

	ready chan struct{} // closed when the SRTP keys are there

	mu      sync.Mutex // everything below
	marks   Marks
	conn    *ice.Conn
	sealed  *srtp.Context
	channel *datachannel.DataChannel
	closers []io.Closer // closed in reverse order
	closed  bool
	out     sender

	in receiver // guarded by cfg.Ledger.mu
}

// New prepares a peer: it has credentials but sends nothing before Start.
func New(cfg Config) (*Peer, error) {
	cert, err := selfsign.GenerateSelfSigned()
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	print, err := fingerprint.Fingerprint(leaf, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	netw, err := newNetwork(cfg.Network)
	if err != nil {
		return nil, err
	}
	local := localAddresses(cfg.Remote.Candidates)
	check, lost, dead := checkEvery, disconnected, failed
	tries := uint16(200) // a pair is not given up for the first ten seconds
	agent, err := ice.NewAgent(&ice.AgentConfig{
		Net:                 netw,
		NetworkTypes:        []ice.NetworkType{ice.NetworkTypeUDP4, ice.NetworkTypeUDP6},
		CandidateTypes:      []ice.CandidateType{ice.CandidateTypeHost},
		MulticastDNSMode:    ice.MulticastDNSModeDisabled,
		IncludeLoopback:     true,
		IPFilter:            func(ip net.IP) bool { return local[ip.String()] },
		CheckInterval:       &check,
		DisconnectedTimeout: &lost,
		FailedTimeout:       &dead,
		MaxBindingRequests:  &tries,
		LoggerFactory:       quiet,
	})
	if err != nil {
		return nil, err
	}
	ufrag, pwd, err := agent.GetLocalUserCredentials()
	if err != nil {
		return nil, errors.Join(err, agent.Close())
	}
	setup := "active"
	if cfg.Remote.Setup == "active" {
		setup = "passive"
	}
	p := &Peer{
		cfg:   cfg,
		local: Description{Ufrag: ufrag, Pwd: pwd, Hash: "sha-256", Fingerprint: strings.ToUpper(print), Setup: setup},
		cert:  cert,
		agent: agent,
		ready: make(chan struct{}),
	}
	p.out.level = silent
	if cfg.Adapt {
		if p.out.adapt, err = newAdaptation(); err != nil {
			return nil, errors.Join(err, agent.Close())
		}
		p.out.fine = true
	}
	p.in = receiver{ssrc: rand.Uint32() | 1, streams: map[uint32]*stream{}}
	p.in.arrivals = twcc.NewRecorder(p.in.ssrc)
	return p, nil
}

// Local returns what the bridge must be told. It has no candidates: bridges learn them from the checks.
func (p *Peer) Local() Description { return p.local }

// Marks returns the moments reached so far.
func (p *Peer) Marks() Marks {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.marks
}

// Start connects in the background; OnState tells how it goes.
func (p *Peer) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.wg.Go(func() {
		if err := p.run(ctx); err != nil && ctx.Err() == nil {
			p.state(StateFailed, err)
		}
	})
}

// Close ends the connection the way a browser does, with a DTLS alert but without a word to ICE, and
// waits for all goroutines. It may be called twice, and on a peer that was never started.
func (p *Peer) Close() {
	p.mu.Lock()
	closers, closed := p.closers, p.closed
	p.closers, p.closed = nil, true
	p.mu.Unlock()
	if p.cancel != nil {
		p.cancel()
	}
	for i := len(closers) - 1; i >= 0; i-- {
		_ = closers[i].Close() // a peer that is gone already has nothing more to lose
	}
	_ = p.agent.Close()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.out.adapt; a != nil && !closed {
		_ = a.bwe.Close()
	}
}

// own keeps c for Close, or closes it at once when that has been called.
func (p *Peer) own(c io.Closer) {
	p.mu.Lock()
	closed := p.closed
	if !closed {
		p.closers = append(p.closers, c)
	}
	p.mu.Unlock()
	if closed {
		_ = c.Close()
	}
}

func (p *Peer) state(s State, err error) {
	p.cfg.Log.Debug("peer", "state", s.String(), "err", err)
	if p.cfg.OnState != nil {
		p.cfg.OnState(s, err)
	}
}

// run connects and then serves the data channel until it ends.
func (p *Peer) run(ctx context.Context) error {
	conn, err := p.checks(ctx)
	if err != nil {
		return fmt.Errorf("ice: %w", err)
	}
	p.mark(func(m *Marks) *time.Time { return &m.Checked })
	p.state(StateChecked, nil)

	pipe := &dtlsPipe{Conn: conn, in: packetio.NewBuffer()}
	pipe.in.SetLimitSize(pipeBytes)
	p.own(pipe)
	p.wg.Go(func() { p.read(conn, pipe) })

	secure, err := p.handshake(ctx, pipe)
	if err != nil {
		return fmt.Errorf("dtls: %w", err)
	}
	p.own(secure)
	if err := p.keys(secure, conn); err != nil {
		return fmt.Errorf("srtp: %w", err)
	}
	p.mark(func(m *Marks) *time.Time { return &m.Connected })
	p.state(StateConnected, nil)
	p.wg.Go(func() { p.pace(ctx) })

	if p.cfg.Remote.SCTP == 0 {
		return nil
	}
	return p.serveChannel(secure)
}

func (p *Peer) mark(which func(*Marks) *time.Time) {
	p.mu.Lock()
	*which(&p.marks) = time.Now()
	p.mu.Unlock()
}

// checks runs ICE until a pair is selected.
func (p *Peer) checks(ctx context.Context) (*ice.Conn, error) {
	up := false // only the agent's own goroutine calls
	err := p.agent.OnConnectionStateChange(func(s ice.ConnectionState) {
		switch s {
		case ice.ConnectionStateConnected:
			if up {
				p.state(StateConnected, nil)
			}
			up = true
		case ice.ConnectionStateDisconnected:
			p.state(StateInterrupted, nil)
		case ice.ConnectionStateFailed:
			p.state(StateFailed, errors.New("ice: no answer"))
		}
	})
	if err != nil {
		return nil, err
	}
	for i, c := range p.cfg.Remote.Candidates {
		candidate, err := remoteCandidate(c)
		if err == nil {
			err = p.agent.AddRemoteCandidate(candidate)
		}
		if err != nil {
			p.cfg.Log.Debug("candidate", "number", i, "err", err)
		}
	}
	if err := p.agent.OnCandidate(func(ice.Candidate) {}); err != nil {
		return nil, err
	}
	if err := p.agent.GatherCandidates(); err != nil {
		return nil, err
	}
	if p.cfg.controlling {
		return p.agent.Dial(ctx, p.cfg.Remote.Ufrag, p.cfg.Remote.Pwd)
	}
	return p.agent.Accept(ctx, p.cfg.Remote.Ufrag, p.cfg.Remote.Pwd)
}

func remoteCandidate(c Candidate) (ice.Candidate, error) {
	if c.Type == "host" {
		return ice.NewCandidateHost(&ice.CandidateHostConfig{
			Network: "udp", Address: c.IP, Port: c.Port, Component: 1, Priority: c.Priority, Foundation: c.Foundation,
		})
	}
	return ice.NewCandidateServerReflexive(&ice.CandidateServerReflexiveConfig{
		Network: "udp", Address: c.IP, Port: c.Port, Component: 1, Priority: c.Priority, Foundation: c.Foundation,
	})
}

// localAddresses returns the addresses from which the kernel would reach the candidates. Gathering on
// every address of a host with containers costs a socket each and pairs that never work.
func localAddresses(candidates []Candidate) map[string]bool {
	local := map[string]bool{}
	for _, c := range candidates {
		ip := net.ParseIP(c.IP)
		conn, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: ip, Port: 9}) // sends nothing
		if ip == nil || err != nil {
			continue
		}
		local[conn.LocalAddr().(*net.UDPAddr).IP.String()] = true
		_ = conn.Close()
	}
	return local
}

// handshake is DTLS 1.2 with the certificate checked against the signalled fingerprint.
func (p *Peer) handshake(ctx context.Context, pipe net.Conn) (*dtls.Conn, error) {
	cfg := &dtls.Config{
		Certificates:           []tls.Certificate{p.cert},
		SRTPProtectionProfiles: []dtls.SRTPProtectionProfile{dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80},
		InsecureSkipVerify:     true, // self-signed; the fingerprint below is what counts
		ClientAuth:             dtls.RequireAnyClientCert,
		LoggerFactory:          quiet,
		VerifyPeerCertificate:  func(raw [][]byte, _ [][]*x509.Certificate) error { return p.verify(raw) },
	}
	if p.local.Setup == "passive" {
		return dtls.ServerWithContext(ctx, pipe, cfg)
	}
	return dtls.ClientWithContext(ctx, pipe, cfg)
}

func (p *Peer) verify(raw [][]byte) error {
	if len(raw) == 0 {
		return ErrFingerprint
	}
	cert, err := x509.ParseCertificate(raw[0])
	if err != nil {
		return err
	}
	hash, err := fingerprint.HashFromString(p.cfg.Remote.Hash)
	if err != nil {
		return err
	}
	got, err := fingerprint.Fingerprint(cert, hash)
	if err != nil {
		return err
	}
	if !strings.EqualFold(got, p.cfg.Remote.Fingerprint) {
		return ErrFingerprint
	}
	return nil
}

// keys derives the SRTP contexts (RFC 5764 section 4.2) and lets media flow.
func (p *Peer) keys(secure *dtls.Conn, conn *ice.Conn) error {
	profile, ok := secure.SelectedSRTPProtectionProfile()
	if !ok {
		return errors.New("no common protection profile")
	}
	cfg := srtp.Config{Profile: srtp.ProtectionProfile(profile)}
	state := secure.ConnectionState()
	if err := cfg.ExtractSessionKeysFromDTLS(&state, p.local.Setup == "active"); err != nil {
		return err
	}
	opened, err := srtp.CreateContext(cfg.Keys.RemoteMasterKey, cfg.Keys.RemoteMasterSalt, cfg.Profile,
		srtp.SRTPReplayProtection(1024), srtp.SRTCPReplayProtection(64))
	if err != nil {
		return err
	}
	sealed, err := srtp.CreateContext(cfg.Keys.LocalMasterKey, cfg.Keys.LocalMasterSalt, cfg.Profile)
	if err != nil {
		return err
	}
	p.opened = opened
	p.mu.Lock()
	p.sealed, p.conn = sealed, conn
	p.mu.Unlock()
	close(p.ready)
	return nil
}

// serveChannel opens the bridge channel in-band, as browsers do, and reads it until it ends.
func (p *Peer) serveChannel(secure *dtls.Conn) error {
	association, err := sctp.ClientWithOptions(sctp.WithNetConn(secure), sctp.WithLoggerFactory(quiet), sctp.WithMaxMessageSize(maxMessageBytes))
	if err != nil {
		return fmt.Errorf("sctp: %w", err)
	}
	p.own(association)
	stream := uint16(0) // even: the DTLS client's (RFC 8832 section 6)
	if p.local.Setup == "passive" {
		stream = 1
	}
	channel, err := datachannel.Dial(association, stream, &datachannel.Config{
		ChannelType: datachannel.ChannelTypeReliable, Priority: datachannel.ChannelPriorityNormal,
		Label: channelLabel, Protocol: channelProtocol, LoggerFactory: quiet,
	})
	if err != nil {
		return fmt.Errorf("data channel: %w", err)
	}
	p.mu.Lock()
	p.channel = channel
	p.marks.Channel = time.Now()
	p.mu.Unlock()
	if p.cfg.OnChannel != nil {
		p.cfg.OnChannel(true)
	}
	buf := make([]byte, maxMessageBytes)
	for {
		n, text, err := channel.ReadDataChannel(buf)
		if err != nil {
			break
		}
		if text && p.cfg.OnMessage != nil {
			p.cfg.OnMessage(append([]byte(nil), buf[:n]...))
		}
	}
	p.mu.Lock()
	p.channel = nil
	p.mu.Unlock()
	if p.cfg.OnChannel != nil {
		p.cfg.OnChannel(false)
	}
	return nil
}

// SendMessage sends one JSON text on the data channel.
func (p *Peer) SendMessage(text []byte) error {
	p.mu.Lock()
	channel := p.channel
	p.mu.Unlock()
	if channel == nil {
		return ErrNoChannel
	}
	_, err := channel.WriteDataChannel(text, true)
	return err
}

// A dtlsPipe is the DTLS part of the datagrams of an ICE connection (RFC 7983).
type dtlsPipe struct {
	net.Conn // writes go straight out
	in       *packetio.Buffer
}

func (d *dtlsPipe) Read(b []byte) (int, error)        { return d.in.Read(b) }
func (d *dtlsPipe) SetReadDeadline(t time.Time) error { return d.in.SetReadDeadline(t) }
func (d *dtlsPipe) SetDeadline(t time.Time) error     { return d.in.SetReadDeadline(t) }
func (d *dtlsPipe) Close() error                      { return d.in.Close() }

// read sorts the datagrams of the connection until it ends.
func (p *Peer) read(conn *ice.Conn, pipe *dtlsPipe) {
	defer func() { _ = pipe.in.Close() }()
	buf := make([]byte, maxDatagram)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		switch b := buf[:n]; {
		case n == 0:
		case b[0] >= 20 && b[0] <= 63:
			_, _ = pipe.in.Write(b) // full: the handshake repeats, SCTP too
		case n >= 12 && b[0]>>6 == 2:
			select {
			case <-p.ready:
			default:
				continue // media before the keys; browsers drop it too
			}
			if b[1] >= 192 && b[1] <= 223 {
				p.receiveRTCP(b)
			} else {
				p.receiveRTP(b)
			}
		}
	}
}

// quiet keeps pion from writing to standard output.
var quiet = &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled, Writer: io.Discard}
