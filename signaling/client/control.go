package client

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/gorilla/websocket"

	"plenum/signaling/client/peer"
	"plenum/wire/colibri"
	"plenum/wire/xmpp"
)

// MuteAudio mutes or unmutes: silence is sent, and the others are told.
func (p *Participant) MuteAudio(muted bool) error {
	return p.do(func() error { p.mute(Audio, muted); return nil })
}

// MuteVideo mutes or unmutes: the picture stops, bridge and others are told.
func (p *Participant) MuteVideo(muted bool) error {
	return p.do(func() error { p.mute(Video, muted); return nil })
}

func (p *Participant) mute(kind peer.Kind, muted bool) {
	s := p.session
	if kind == Audio {
		p.audioMuted = muted
		if s != nil {
			p.setLevel(s)
		}
	} else {
		p.videoMuted = muted
		if s != nil {
			for _, t := range s.tracks {
				if t.video {
					s.peer.Enable(t.name, !muted)
				}
			}
			if s.open {
				p.sendVideoType(s)
			}
		}
	}
	p.presence(nil)
	if !muted && p.muted[kind] { // once after each mute by the focus, as the stock client
		p.muted[kind] = false
		p.request("set", p.room.occupant("focus"), muteElement(kind, p.room.occupant(p.room.nick), false), nil)
	}
}

func muteElement(kind peer.Kind, who string, muted bool) *xmpp.Element {
	space := nsJitMeet + "/audio"
	if kind == Video {
		space = nsJitMeet + "/video"
	}
	return xmpp.New(space, "mute", "jid", who).AddText(fmt.Sprint(muted))
}

// MuteOther asks the focus to mute somebody, which moderators may.
func (p *Participant) MuteOther(ctx context.Context, endpoint string, kind peer.Kind) error {
	_, err := p.IQ(ctx, "set", p.room.occupant("focus"), muteElement(kind, p.room.occupant(endpoint), true))
	return err
}

// SetLevel sets how loud our tone claims to be, in -dBov: 1 (loud) to 126, or 127 for silence.
func (p *Participant) SetLevel(level uint8) error {
	return p.do(func() error {
		p.level = level
		if p.session != nil {
			p.setLevel(p.session)
		}
		return nil
	})
}

// SetConstraints tells the bridge what we want to see, now and whenever the channel opens again.
func (p *Participant) SetConstraints(c colibri.ReceiverVideoConstraints) error {
	return p.do(func() error {
		p.wanted = c
		if s := p.session; s != nil && s.open {
			p.say(s, c)
		}
		return nil
	})
}

// SendEndpointMessage sends payload to one endpoint, or to all others when to is empty.
func (p *Participant) SendEndpointMessage(to string, payload any) error {
	b, err := json.Marshal(payload)
	if err != nil {
		return err
	}
	return p.Say(colibri.EndpointMessage{To: to, Fields: []colibri.Field{{Name: "msgPayload", Value: b}}})
}

// Say sends any message on the bridge channel.
func (p *Participant) Say(m colibri.Message) error {
	return p.do(func() error {
		if s := p.session; s != nil && s.open {
			p.say(s, m)
			return nil
		}
		return peer.ErrNoChannel
	})
}

// SetDisplayName changes the name that the others see.
func (p *Participant) SetDisplayName(name string) error {
	return p.do(func() error {
		p.cfg.Name = name
		p.presence(nil)
		return nil
	})
}

// Chat sends a message to the room.
func (p *Participant) Chat(text string) error {
	return p.Send(xmpp.Message("groupchat", "", "", p.room.address.String(), xmpp.New("", "body").AddText(text)))
}

// Send sends any stanza.
func (p *Participant) Send(e *xmpp.Element) error {
	return p.do(func() error { p.send(e); return nil })
}

// IQ sends a request and returns the answer; an error answer is a xmpp.StanzaError. An empty to is the
// room's address.
func (p *Participant) IQ(ctx context.Context, typ, to string, payload *xmpp.Element) (*xmpp.Element, error) {
	if to == "" {
		to = p.room.address.String()
	}
	answer := make(chan *xmpp.Element, 1)
	if err := p.do(func() error {
		p.request(typ, to, payload, func(e *xmpp.Element) { answer <- e })
		return nil
	}); err != nil {
		return nil, err
	}
	select {
	case e := <-answer:
		if err, failed := xmpp.ParseError(e); failed {
			return e, err
		}
		return e, nil
	case <-p.done:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Restart asks for a new media session, as a stock client does when it must renegotiate everything.
func (p *Participant) Restart() error {
	return p.do(func() error {
		s := p.session
		if s == nil {
			return fmt.Errorf("restart: %w", ErrOffer)
		}
		p.terminate(s, "success", "restart required", true)
		return nil
	})
}

// Lose drops these shares (0…1) of the UDP datagrams sent and received.
func (p *Participant) Lose(up, down float64) { p.net.Lose(up, down) }

// RestartGaps has Stats look for the longest gaps anew.
func (p *Participant) RestartGaps() { p.ledger.Restart() }

// Delay holds UDP datagrams to the bridge back; round trips grow by d.
func (p *Participant) Delay(d time.Duration) { p.net.Delay(d) }

// Cut makes the network fall silent: UDP is lost, TCP waits. Restore undoes it.
func (p *Participant) Cut() {
	p.net.Cut(true)
	p.target.cut.set(true)
}

// CutMedia silences UDP alone.
func (p *Participant) CutMedia() { p.net.Cut(true) }

// Restore ends Cut and CutMedia.
func (p *Participant) Restore() {
	p.net.Cut(false)
	p.target.cut.set(false)
}

// Sleep stops the participant for d, as a computer does whose lid is closed: nothing is sent, read or
// timed, and the network is cut. It returns when it is over.
func (p *Participant) Sleep(d time.Duration) error {
	p.Cut()
	defer p.Restore()
	over := make(chan struct{})
	if !p.box.post(func() {
		select {
		case <-over:
		case <-p.closing:
		}
	}) {
		return ErrClosed
	}
	defer close(over)
	select {
	case <-time.After(d):
		return nil
	case <-p.closing:
		return ErrClosed
	}
}

// DropSocket resets the connection to the shard; the participant resumes by itself (Config.ResumeAfter).
func (p *Participant) DropSocket() error {
	return p.do(func() error {
		if l := p.stream.link; l != nil {
			l.reset()
		}
		return nil
	})
}

// Leave leaves the room in order, waits for the room's answer as the stock client does (at most 5 s, or
// until ctx ends) and closes everything.
func (p *Participant) Leave(ctx context.Context) error {
	left := make(chan struct{})
	err := p.do(func() error {
		if !p.room.joined || p.room.leaving != nil {
			return ErrClosed
		}
		p.room.leaving = left
		p.send(xmpp.Presence("unavailable", "", "", p.room.occupant(p.room.nick)))
		p.endSession()
		return nil
	})
	if err == nil {
		timeout := time.NewTimer(leaveTimeout)
		defer timeout.Stop()
		select {
		case <-left:
		case <-p.done:
		case <-timeout.C:
			err = fmt.Errorf("leave: no answer from the room in %v", leaveTimeout)
		case <-ctx.Done():
			err = ctx.Err()
		}
		_ = p.do(func() error {
			if l := p.stream.link; l != nil {
				_ = l.write(xmpp.New(xmpp.NSFraming, "close").Append(nil))
				bye := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
				_ = l.ws.WriteControl(websocket.CloseMessage, bye, time.Now().Add(time.Second))
			}
			p.end(ErrClosed)
			return nil
		})
	}
	p.Close()
	return err
}

// Vanish drops all sockets without a word, as a computer does that loses its power, and closes.
func (p *Participant) Vanish() {
	p.net.Cut(true)
	_ = p.do(func() error {
		if l := p.stream.link; l != nil {
			p.stream.link = nil
			l.reset()
		}
		p.end(ErrClosed)
		return nil
	})
	p.Close()
}
