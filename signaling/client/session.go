package client

import (
	"fmt"
	"math/rand/v2"
	"time"

	"plenum/signaling/client/peer"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

const maxRestarts = 3 // as the stock client, before it would reload the page

// A session is one media session with a bridge, from offer to end. It belongs to the participant's goroutine.
type session struct {
	sid, from string
	bridge    string // id of the bridge session
	peer      *peer.Peer
	tracks    []track
	accepted  bool // the answer was acknowledged
	open      bool // the bridge channel
	socket    *channelSocket
}

// onJingle handles one action of the focus. Every request is answered at once, as the stock client does.
func (p *Participant) onJingle(iq, e *xmpp.Element) {
	s, err := jingle.Parse(e)
	if err != nil {
		p.send(strip(xmpp.ErrorReply(iq, xmpp.StanzaError{Condition: xmpp.BadRequest, Text: err.Error()})))
		return
	}
	if s.Action != jingle.SessionInitiate && (p.session == nil || p.session.sid != s.SID) {
		p.send(strip(xmpp.ErrorReply(iq, xmpp.StanzaError{
			Condition: xmpp.ItemNotFound, App: []*xmpp.Element{xmpp.New(jingle.NSErrors, "unknown-session")},
		})))
		return
	}
	p.reply(iq)
	switch s.Action {
	case jingle.SessionInitiate:
		p.onOffer(iq.Attr("from"), &s)
	case jingle.SessionTerminate:
		text := ""
		if s.Reason != nil {
			text = s.Reason.Condition + " " + s.Reason.Text
		}
		p.endSession()
		p.event(Event{Kind: SessionEnded, Text: text})
		p.presence(nil)
	case jingle.SourceAdd:
		p.session.peer.Map(announced(&s)...)
	}
}

// onOffer starts a session in place of one that may still be there.
func (p *Participant) onOffer(from string, offer *jingle.Session) {
	p.update(func(s *Stats) {
		s.Sessions++
		s.Marks.Offered = time.Now()
	})
	p.endSession()
	description, err := remote(offer)
	if err != nil {
		p.log.Debug("offer", "err", err)
		p.event(Event{Kind: SessionFailed, Err: err})
		return
	}
	s := &session{sid: offer.SID, from: from}
	if offer.Bridge != nil {
		s.bridge = offer.Bridge.ID
	}
	s.peer, err = peer.New(peer.Config{
		Remote: description, Media: media(offer, &p.cfg), Network: p.net, Ledger: p.ledger, Log: p.log,
		Adapt: p.cfg.Send.Adapt,
		OnState: func(state peer.State, err error) {
			p.box.post(func() { p.onState(s, state, err) })
		},
		OnChannel: func(open bool) {
			p.box.post(func() { p.onChannel(s, open) })
		},
		OnMessage: func(b []byte) {
			p.box.post(func() { p.onChannelMessage(s, b) })
		},
	})
	if err != nil {
		p.event(Event{Kind: SessionFailed, Err: err})
		return
	}
	p.addTracks(s)
	s.peer.Map(announced(offer)...)
	p.session = s
	p.mu.Lock()
	p.media = s.peer
	p.mu.Unlock()
	s.peer.Start()
	p.event(Event{Kind: SessionStarted})
	if description.SCTP == 0 {
		if t := offer.Transport(); len(t.WebSockets) > 0 {
			p.openSocket(s, t.WebSockets[0])
		}
	}
	answer := accept(offer, from, p.stream.jid.String(), s.peer.Local(), s.tracks, &p.cfg)
	p.cfg.Answer(&answer)
	p.request("set", from, answer.Element(), func(e *xmpp.Element) {
		if p.session != s {
			return
		}
		if err, failed := xmpp.ParseError(e); failed {
			p.endSession()
			p.event(Event{Kind: SessionFailed, Err: fmt.Errorf("session-accept: %w", err)})
			return
		}
		s.accepted = true
		p.update(func(s *Stats) { s.Marks.Accepted = time.Now() })
		p.presence(nil)
	})
}

// addTracks gives a session its sources, with SSRCs of their own as a new PeerConnection has.
func (p *Participant) addTracks(s *session) {
	send := &p.cfg.Send
	if send.Audio {
		t := p.newTrack("audio", "a0", 1, false)
		s.tracks = append(s.tracks, t)
		s.peer.AddAudio(t.encodings[0].SSRC)
		p.setLevel(s)
	}
	if send.Video {
		n := 1
		if send.Simulcast {
			n = 3
		}
		t := p.newTrack("video", "v0", n, true)
		s.tracks = append(s.tracks, t)
		s.peer.AddVideo(peer.Picture{
			Name: t.name, Colour: send.Colour, Encodings: t.encodings, PictureIDs: !send.DependencyDescriptor, Camera: send.Camera,
		})
		s.peer.Enable(t.name, !p.videoMuted)
	}
}

func (p *Participant) newTrack(kind, suffix string, encodings int, video bool) track {
	t := track{
		name: p.room.nick + "-" + suffix, video: video,
		msid: fmt.Sprintf("%s-%s-0-1 %08x-%04x-4000-8000-%012x-1", p.room.nick, kind, rand.Uint32(), rand.Uint32()>>16, rand.Uint64()>>16),
	}
	for range encodings {
		e := peer.Encoding{SSRC: p.cfg.SSRC()}
		if video && !p.cfg.NoRTX {
			e.RTX = p.cfg.SSRC()
		}
		t.encodings = append(t.encodings, e)
	}
	return t
}

// setLevel tells the peer how loud we are.
func (p *Participant) setLevel(s *session) {
	level := p.level
	if p.audioMuted {
		level = 127
	}
	s.peer.SetLevel(level)
}

func (p *Participant) onState(s *session, state peer.State, err error) {
	if p.session != s {
		return
	}
	switch state {
	case peer.StateConnected:
		p.event(Event{Kind: MediaConnected})
	case peer.StateInterrupted:
		p.event(Event{Kind: MediaInterrupted})
	case peer.StateFailed:
		p.event(Event{Kind: MediaFailed, Err: err})
		p.restart(s)
	}
}

// restart asks for a new session after ICE has failed.
func (p *Participant) restart(s *session) {
	if p.cfg.NoRestart || p.restarts == maxRestarts {
		return
	}
	p.restarts++
	p.terminate(s, "connectivity-error", "ICE FAILED", true)
}

// terminate ends a session from our side.
func (p *Participant) terminate(s *session, condition, text string, restart bool) {
	p.request("set", s.from, jingle.Session{
		Action: jingle.SessionTerminate, SID: s.sid, Initiator: s.from,
		Reason: &jingle.Reason{Condition: condition, Text: text},
		Bridge: &jingle.BridgeSession{ID: s.bridge, Restart: restart},
	}.Element(), func(e *xmpp.Element) {
		if err, failed := xmpp.ParseError(e); failed {
			p.event(Event{Kind: SessionFailed, Err: fmt.Errorf("session-terminate: %w", err)})
		}
	})
	p.endSession()
	p.event(Event{Kind: SessionEnded, Text: condition + " " + text})
}

// endSession closes the media of the current session, if there is one.
func (p *Participant) endSession() {
	s := p.session
	if s == nil {
		return
	}
	p.session = nil
	if s.socket != nil {
		s.socket.close()
	}
	s.peer.Close()
	p.mu.Lock()
	p.media = nil
	p.snap.marks(s.peer.Marks())
	p.snap.sent(s.peer.Sent())
	p.mu.Unlock()
}
