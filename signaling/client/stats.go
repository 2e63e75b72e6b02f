package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"plenum/signaling/client/peer"
	"plenum/wire/colibri"
	"plenum/wire/xmpp"
)

// An EventKind says what happened.
type EventKind string

// The events. Those without a comment say it all.
const (
	Joined           EventKind = "joined"
	MemberJoined     EventKind = "member joined"  // also those that were there first
	MemberChanged    EventKind = "member changed" // any presence, our own included
	MemberLeft       EventKind = "member left"
	Chat             EventKind = "chat"
	JSONMessage      EventKind = "json message"    // Text, from the address Endpoint
	MutedByFocus     EventKind = "muted by focus"  // Text is audio or video, Endpoint the actor
	SessionStarted   EventKind = "session started" // an offer came
	SessionEnded     EventKind = "session ended"
	SessionFailed    EventKind = "session failed" // offer unusable or answer refused
	MediaConnected   EventKind = "media connected"
	MediaInterrupted EventKind = "media interrupted"
	MediaFailed      EventKind = "media failed"
	ChannelOpen      EventKind = "channel open"
	ChannelClosed    EventKind = "channel closed"
	ChannelMessage   EventKind = "channel message" // Message; EndpointStats are counted only
	BadMessage       EventKind = "bad message"     // not understood
	SocketLost       EventKind = "socket lost"
	Resumed          EventKind = "resumed"
	Ended            EventKind = "ended" // the last one; Err says why
)

// An Event is something that happened to a participant.
type Event struct {
	Kind     EventKind
	At       time.Time
	Endpoint string
	Text     string
	Message  colibri.Message
	Err      error
}

// A Member is an occupant of the room, the focus and ourselves included.
type Member struct {
	ID, JID, Name, Role, Affiliation string
	Sources                          map[string]SourceInfo
	Presence                         *xmpp.Element // the last one, whole
}

// A SourceInfo is what a member says of one of its sources.
type SourceInfo struct {
	Muted     bool   `json:"muted"`
	VideoType string `json:"videoType"`
}

// Marks are the moments of a participant's start; zero when not reached. Those from Offered on belong to
// the last session.
type Marks struct {
	Started    time.Time // Join was called
	Bound      time.Time // logged in
	Requested  time.Time // the conference is ready
	Joined     time.Time // our own presence came back
	Offered    time.Time // session-initiate
	Accepted   time.Time // the answer to session-accept
	Checked    time.Time // ICE
	Connected  time.Time // DTLS
	Channel    time.Time // the bridge channel is open
	FirstAudio time.Time // first packet of anybody's audio
	FirstVideo time.Time // first frame of anybody's video that a decoder would show
}

// Stats is a snapshot of a participant. Maps and slices in it are copies.
type Stats struct {
	ID, JID, MeetingID, Role string
	Marks                    Marks
	Members                  map[string]Member // by endpoint id; "focus" is one
	Sessions                 int               // offers received
	Resumptions              int

	Speaker         string         // last dominant speaker
	Forwarded       []string       // last ForwardedSources
	MaxHeight       map[string]int // last SenderSourceConstraints, by our source
	Inactive        []string       // endpoints that the bridge does not hear
	Downlink        int64          // bit/s, last ConnectionStats
	ChannelMessages int            // received

	Sent     peer.Sent       // over all sessions
	Received []peer.Received // by source name; the bridge's own have the owner "jvb"
}

// Source returns what was received of a source; zero when nothing.
func (s Stats) Source(name string) peer.Received {
	for _, r := range s.Received {
		if r.Source.Name == name {
			return r
		}
	}
	return peer.Received{}
}

// Playing counts the sources of others that are alive: video with a frame, audio with a packet, in the
// second before the snapshot was taken.
func (s Stats) Playing(kind peer.Kind) int {
	n, now := 0, time.Now()
	for _, r := range s.Received {
		last := r.LastPacket
		if kind == Video {
			last = r.LastFrame
		}
		if r.Source.Kind == kind && r.Source.Owner != "jvb" && now.Sub(last) < time.Second {
			n++
		}
	}
	return n
}

// String is one line for a failed test or a probe.
func (s Stats) String() string {
	m := &s.Marks
	since := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return fmt.Sprint(t.Sub(m.Started).Round(time.Millisecond))
	}
	return fmt.Sprintf("%s joined %s offered %s ice %s dtls %s channel %s audio %s video %s; %d members, %d sessions, playing %d audio %d video",
		s.ID, since(m.Joined), since(m.Offered), since(m.Checked), since(m.Connected), since(m.Channel),
		since(m.FirstAudio), since(m.FirstVideo), len(s.Members), s.Sessions, s.Playing(Audio), s.Playing(Video))
}

func (s *Stats) marks(m peer.Marks) {
	if !m.Checked.IsZero() {
		s.Marks.Checked = m.Checked
	}
	if !m.Connected.IsZero() {
		s.Marks.Connected = m.Connected
	}
}

func (s *Stats) sent(more peer.Sent) {
	t := &s.Sent
	t.AudioPackets += more.AudioPackets
	t.VideoPackets += more.VideoPackets
	t.Bytes += more.Bytes
	t.Frames += more.Frames
	t.KeyFrames += more.KeyFrames
	t.Retransmitted += more.Retransmitted
	t.KeyFrameRequests += more.KeyFrameRequests
	t.Feedback += more.Feedback
	t.Estimate = more.Estimate
}

// update changes the snapshot.
func (p *Participant) update(f func(*Stats)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.snap.Members == nil {
		p.snap.Members = map[string]Member{}
		p.snap.MaxHeight = map[string]int{}
	}
	f(&p.snap)
}

// event tells the owner.
func (p *Participant) event(e Event) {
	e.At = time.Now()
	p.log.Debug("event", "kind", string(e.Kind), "of", e.Endpoint, "err", e.Err)
	if p.cfg.OnEvent != nil {
		p.cfg.OnEvent(e)
	}
}

// Stats returns a snapshot.
func (p *Participant) Stats() Stats {
	p.mu.Lock()
	s := p.snap
	s.Members = maps.Clone(s.Members)
	s.MaxHeight = maps.Clone(s.MaxHeight)
	media := p.media
	p.mu.Unlock()
	if media != nil {
		s.marks(media.Marks())
		s.sent(media.Sent())
	}
	s.Received = p.ledger.Snapshot()
	for _, r := range s.Received {
		switch {
		case r.Source.Owner == "jvb":
		case r.Source.Kind == Audio:
			first(&s.Marks.FirstAudio, r.FirstPacket)
		case r.Source.Kind == Video:
			first(&s.Marks.FirstVideo, r.FirstFrame)
		}
	}
	return s
}

// first keeps the earlier of two moments.
func first(mark *time.Time, t time.Time) {
	if !t.IsZero() && (mark.IsZero() || t.Before(*mark)) {
		*mark = t
	}
}

// ID returns the endpoint id.
func (p *Participant) ID() string { return p.room.nick }

// pollEvery is how often Wait looks; media counters have no events.
const pollEvery = 10 * time.Millisecond

// Wait returns when cond holds, with an error that shows the state when ctx or the participant ends first.
func (p *Participant) Wait(ctx context.Context, cond func(Stats) bool) error {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		s := p.Stats()
		if cond(s) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-p.done:
			return fmt.Errorf("%w: %s", errors.Join(ErrClosed, p.err), s)
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", ctx.Err(), s)
		}
	}
}
