package focus

import (
	"strings"

	"plenum/wire/jingle"
	"plenum/wire/meet"
	"plenum/wire/xmpp"
)

// countSenders reads from presence how many sources of each kind a participant has unmuted. It is looked at
// only where there is a limit.
func (c *Conference) countSenders(p *participant) {
	p.audioOn, p.videoOn = 0, 0
	if c.cfg.MaxAudioSenders == 0 && c.cfg.MaxVideoSenders == 0 {
		return
	}
	for _, e := range p.Presence {
		if e.Name != "SourceInfo" {
			continue
		}
		info, err := meet.ParseSourceInfo(e)
		if err != nil {
			continue
		}
		for name, state := range info {
			kind, own := strings.CutPrefix(name, p.Nick+"-")
			switch {
			case !own || state.Muted:
			case strings.HasPrefix(kind, "a"):
				p.audioOn++
			case strings.HasPrefix(kind, "v"):
				p.videoOn++
			}
		}
	}
}

// full reports of which kinds no more sources may begin to send.
func (c *Conference) full() (audio, video bool) {
	a, v := 0, 0
	for _, p := range c.participants {
		a += p.audioOn
		v += p.videoOn
	}
	return c.cfg.MaxAudioSenders > 0 && a >= c.cfg.MaxAudioSenders, c.cfg.MaxVideoSenders > 0 && v >= c.cfg.MaxVideoSenders
}

// mayAdd refuses sources of a kind that is full. The client takes its unmuting back.
func (c *Conference) mayAdd(more jingle.EndpointSources) *xmpp.StanzaError {
	audio, video := c.full()
	if audio && len(more.Audio.Sources) > 0 || video && len(more.Video.Sources) > 0 {
		return &xmpp.StanzaError{Condition: xmpp.ResourceConstraint, Text: "sender limit exceeded"}
	}
	return nil
}
