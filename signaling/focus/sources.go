package focus

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"plenum/wire/colibri"
	"plenum/wire/jingle"
	"plenum/wire/xmpp"
)

// Limits of one participant; the first two are Jicofo's.
const (
	maxSSRCs     = 20
	maxGroups    = 20
	maxNameBytes = 128
	maxMSIDBytes = 512
	semanticsFID = "FID"
	semanticsSIM = "SIM"
	desktop      = "desktop"
	camera       = "camera"
)

// contentSources gathers the sources of all contents of a client's stanza.
func contentSources(in jingle.Session) jingle.EndpointSources {
	var s jingle.EndpointSources
	for _, content := range in.Contents {
		m := &s.Video
		switch cmp.Or(content.Media, content.Name) {
		case "audio":
			m = &s.Audio
		case "video":
		default:
			continue
		}
		m.Sources = append(m.Sources, content.Sources...)
		m.Groups = append(m.Groups, content.Groups...)
	}
	return s
}

// addSources returns have with more, or the reason why that is refused. Nothing of have is changed.
func (c *Conference) addSources(p *participant, have, more jingle.EndpointSources) (jingle.EndpointSources, *xmpp.StanzaError) {
	sum := have
	sum.Audio = merge(have.Audio, more.Audio)
	sum.Video = merge(have.Video, more.Video)
	for i := range sum.Audio.Sources {
		sum.Audio.Sources[i] = normal(p.Nick, "", sum.Audio.Sources[i])
	}
	for i := range sum.Video.Sources {
		sum.Video.Sources[i] = normal(p.Nick, camera, sum.Video.Sources[i])
	}
	if err := c.checkSources(p, sum); err != nil {
		fault := badRequest(err.Error())
		return have, &fault
	}
	return sum, nil
}

func merge(a, b jingle.MediaSources) jingle.MediaSources {
	return jingle.MediaSources{Sources: append(slices.Clone(a.Sources), b.Sources...), Groups: append(slices.Clone(a.Groups), b.Groups...)}
}

// normal gives a source the name and video type that old clients leave out.
func normal(nick, videoType string, s jingle.Source) jingle.Source {
	if s.Name == "" {
		s.Name = nick + "-a0"
		if videoType != "" {
			s.Name = nick + "-v0"
		}
	}
	if videoType == "" || s.VideoType != desktop {
		s.VideoType = videoType
	}
	return s
}

// checkSources applies Jicofo's rules, and one of ours: source names begin with
// the endpoint's id, so that nobody passes media off as somebody else's.
func (c *Conference) checkSources(p *participant, sum jingle.EndpointSources) error {
	if n := len(sum.Audio.Sources) + len(sum.Video.Sources); n > maxSSRCs {
		return fmt.Errorf("%d ssrcs, at most %d are allowed", n, maxSSRCs)
	}
	if n := len(sum.Audio.Groups) + len(sum.Video.Groups); n > maxGroups {
		return fmt.Errorf("%d ssrc groups, at most %d are allowed", n, maxGroups)
	}
	seen := map[uint32]bool{}
	kinds := map[string]string{} // of names
	for _, m := range []struct {
		kind string
		jingle.MediaSources
	}{{"audio", sum.Audio}, {"video", sum.Video}} {
		msids := map[uint32]string{}
		for _, s := range m.Sources {
			switch {
			case s.SSRC == 0:
				return fmt.Errorf("ssrc 0")
			case seen[s.SSRC]:
				return fmt.Errorf("ssrc %d is used twice", s.SSRC)
			case !strings.HasPrefix(s.Name, p.Nick+"-"), len(s.Name) > maxNameBytes:
				return fmt.Errorf("source name of ssrc %d does not belong to %s", s.SSRC, p.Nick)
			case kinds[s.Name] != "" && kinds[s.Name] != m.kind:
				return fmt.Errorf("source name of ssrc %d is both audio and video", s.SSRC)
			case len(s.MSID) > maxMSIDBytes:
				return fmt.Errorf("msid of ssrc %d is too long", s.SSRC)
			}
			seen[s.SSRC] = true
			kinds[s.Name] = m.kind
			msids[s.SSRC] = s.MSID
		}
		for _, g := range m.Groups {
			if err := checkGroup(g, msids); err != nil {
				return err
			}
		}
	}
	for _, other := range c.participants {
		if other == p || other.session == nil {
			continue
		}
		if err := conflict(sum, other.session.sources); err != nil {
			return err
		}
	}
	return nil
}

func checkGroup(g jingle.SourceGroup, msids map[uint32]string) error {
	if g.Semantics == semanticsFID && len(g.SSRCs) != 2 || len(g.SSRCs) == 0 {
		return fmt.Errorf("%.16s group of %d ssrcs", g.Semantics, len(g.SSRCs))
	}
	for i, ssrc := range g.SSRCs {
		msid, known := msids[ssrc]
		if !known {
			return fmt.Errorf("ssrc %d of a group is not signaled", ssrc)
		}
		if msid != msids[g.SSRCs[0]] {
			return fmt.Errorf("group with ssrc %d has several msids", ssrc)
		}
		if slices.Contains(g.SSRCs[:i], ssrc) {
			return fmt.Errorf("ssrc %d is twice in a group", ssrc)
		}
	}
	return nil
}

// conflict looks for an SSRC, msid or name that two participants use.
func conflict(a, b jingle.EndpointSources) error {
	for _, x := range append(slices.Clip(a.Audio.Sources), a.Video.Sources...) {
		for _, list := range [][]jingle.Source{b.Audio.Sources, b.Video.Sources} {
			for _, y := range list {
				if x.SSRC == y.SSRC {
					return fmt.Errorf("ssrc %d is in use", x.SSRC)
				}
				if x.MSID != "" && x.MSID == y.MSID {
					return fmt.Errorf("msid of ssrc %d is in use", x.SSRC)
				}
				if x.Name == y.Name {
					return fmt.Errorf("source name of ssrc %d is in use", x.SSRC)
				}
			}
		}
	}
	return nil
}

// changeSources carries out a client's source-add or source-remove.
func (c *Conference) changeSources(p *participant, in jingle.Session, accept func()) *xmpp.StanzaError {
	s := p.session
	var fault *xmpp.StanzaError
	if in.Action == jingle.SourceAdd {
		if fault = c.mayAdd(contentSources(in)); fault != nil {
			return fault
		}
		s.sources, fault = c.addSources(p, s.sources, contentSources(in))
	} else {
		s.sources, fault = removeSources(s.sources, contentSources(in))
	}
	if fault != nil {
		return fault
	}
	c.publish(p)
	c.update(p, colibri.Endpoint{Sources: bridgeSources(s.sources)}, nil)
	accept()
	return nil
}

// removeSources returns have without gone, all of which must be there. Groups that lose a member go too.
func removeSources(have, gone jingle.EndpointSources) (jingle.EndpointSources, *xmpp.StanzaError) {
	rest := have
	var err error
	if rest.Audio, err = subtract(have.Audio, gone.Audio); err == nil {
		rest.Video, err = subtract(have.Video, gone.Video)
	}
	if err != nil {
		fault := badRequest(err.Error())
		return have, &fault
	}
	return rest, nil
}

func subtract(have, gone jingle.MediaSources) (jingle.MediaSources, error) {
	var rest jingle.MediaSources
	for _, g := range gone.Sources {
		if !hasSSRC(have.Sources, g.SSRC) {
			return have, fmt.Errorf("ssrc %d is not signaled", g.SSRC)
		}
	}
	for _, s := range have.Sources {
		if !hasSSRC(gone.Sources, s.SSRC) {
			rest.Sources = append(rest.Sources, s)
		}
	}
	for _, g := range have.Groups {
		whole := !slices.ContainsFunc(g.SSRCs, func(ssrc uint32) bool { return !hasSSRC(rest.Sources, ssrc) })
		if whole && !slices.ContainsFunc(gone.Groups, func(x jingle.SourceGroup) bool { return sameGroup(g, x) }) {
			rest.Groups = append(rest.Groups, g)
		}
	}
	return rest, nil
}

func hasSSRC(list []jingle.Source, ssrc uint32) bool {
	return slices.ContainsFunc(list, func(s jingle.Source) bool { return s.SSRC == ssrc })
}

func sameGroup(a, b jingle.SourceGroup) bool {
	return a.Semantics == b.Semantics && slices.Equal(a.SSRCs, b.SSRCs)
}

// bridgeSources lists what an endpoint sends the way colibri2 wants it: by source name, complete.
func bridgeSources(s jingle.EndpointSources) *colibri.Sources {
	var out colibri.Sources
	for _, kind := range []struct {
		name string
		jingle.MediaSources
	}{{"audio", s.Audio}, {"video", s.Video}} {
		first := len(out.Media)
		for _, source := range kind.Sources {
			i := slices.IndexFunc(out.Media[first:], func(m colibri.MediaSource) bool { return m.ID == source.Name })
			if i < 0 {
				i = len(out.Media) - first
				out.Media = append(out.Media, colibri.MediaSource{ID: source.Name, Type: kind.name})
			}
			source.MSID = ""
			m := &out.Media[first+i]
			m.Sources = append(m.Sources, source)
		}
		for _, g := range kind.Groups {
			for i := range out.Media[first:] {
				if m := &out.Media[first+i]; hasSSRC(m.Sources, g.SSRCs[0]) {
					m.Groups = append(m.Groups, g)
				}
			}
		}
	}
	return &out
}

// publish renews what others are told of p's sources: the first encoding of each.
func (c *Conference) publish(p *participant) {
	s := p.session
	s.published = jingle.EndpointSources{Owner: p.Nick, Audio: s.sources.Audio, Video: withoutSimulcast(s.sources.Video)}
	c.changed = append(c.changed, p.Nick)
}

// view is what p is told of an owner's sources, nothing when there are none.
func (c *Conference) view(p, owner *participant) jingle.EndpointSources {
	v := jingle.EndpointSources{}
	if owner == nil || owner == p || owner.session == nil {
		return v
	}
	v.Owner = owner.Nick
	if p.features.audio {
		v.Audio = owner.session.published.Audio
	}
	if p.features.video {
		v.Video = owner.session.published.Video
	}
	return v
}

func isEmpty(s jingle.EndpointSources) bool { return len(s.Audio.Sources)+len(s.Video.Sources) == 0 }

// visible lists the sources of the others that p must be told over Jingle: none if the bridge rewrites.
func (c *Conference) visible(p *participant) []jingle.EndpointSources {
	if p.features.rewriting {
		return nil
	}
	var list []jingle.EndpointSources
	for _, other := range c.participants {
		if v := c.view(p, other); !isEmpty(v) {
			list = append(list, v)
		}
	}
	return list
}

// withoutSimulcast keeps the first SSRC of every SIM group with its RTX: what the bridge projects all
// encodings onto.
func withoutSimulcast(m jingle.MediaSources) jingle.MediaSources {
	var dropped []uint32
	for _, g := range m.Groups {
		if g.Semantics == semanticsSIM {
			dropped = append(dropped, g.SSRCs[1:]...)
		}
	}
	for _, g := range m.Groups {
		if g.Semantics == semanticsFID && slices.Contains(dropped, g.SSRCs[0]) {
			dropped = append(dropped, g.SSRCs[1])
		}
	}
	var kept jingle.MediaSources
	for _, s := range m.Sources {
		if !slices.Contains(dropped, s.SSRC) {
			kept.Sources = append(kept.Sources, s)
		}
	}
	for _, g := range m.Groups {
		if g.Semantics != semanticsSIM && !slices.ContainsFunc(g.SSRCs, func(x uint32) bool { return slices.Contains(dropped, x) }) {
			kept.Groups = append(kept.Groups, g)
		}
	}
	return kept
}

// signalSources tells clients without rewriting what changed since they were last told. Until a client
// has accepted, changes wait; those that cancel each other are never sent.
func (c *Conference) signalSources() {
	if len(c.changed) == 0 {
		return
	}
	owners := c.changed
	c.changed = nil
	slices.Sort(owners)
	owners = slices.Compact(owners)
	for _, p := range c.participants {
		s := p.session
		if s == nil || s.state != active || p.features.rewriting {
			continue
		}
		look := owners
		if _, accepted := slices.BinarySearch(owners, p.Nick); accepted {
			look = c.nicks() // the first time, everything may be new
		}
		var gone, more []jingle.EndpointSources
		for _, nick := range look {
			told, now := s.signaled[nick], c.view(p, c.participant(nick))
			if d := difference(told, now); !isEmpty(d) {
				gone = append(gone, d)
			}
			if d := difference(now, told); !isEmpty(d) {
				more = append(more, d)
			}
			if s.signaled[nick] = now; isEmpty(now) {
				delete(s.signaled, nick)
			}
		}
		c.signal(p, jingle.SourceRemove, gone)
		c.signal(p, jingle.SourceAdd, more)
	}
}

func (c *Conference) signal(p *participant, action string, sources []jingle.EndpointSources) {
	if len(sources) > 0 {
		c.ask(p, "set", jingle.Session{Action: action, SID: p.session.sid, Sources: sources}.Element(), nil)
	}
}

// forget drops the sources of somebody who left: clients clean those up from presence.
func (c *Conference) forget(nick string) {
	for _, p := range c.participants {
		if p.session != nil {
			delete(p.session.signaled, nick)
		}
	}
}

func (c *Conference) nicks() []string {
	var list []string
	for _, p := range c.participants {
		list = append(list, p.Nick)
	}
	return list
}

// difference is what is in a but not in b.
func difference(a, b jingle.EndpointSources) jingle.EndpointSources {
	return jingle.EndpointSources{Owner: a.Owner, Audio: minus(a.Audio, b.Audio), Video: minus(a.Video, b.Video)}
}

func minus(a, b jingle.MediaSources) jingle.MediaSources {
	var d jingle.MediaSources
	for _, s := range a.Sources {
		if !slices.Contains(b.Sources, s) {
			d.Sources = append(d.Sources, s)
		}
	}
	for _, g := range a.Groups {
		if !slices.ContainsFunc(b.Groups, func(x jingle.SourceGroup) bool { return sameGroup(g, x) }) {
			d.Groups = append(d.Groups, g)
		}
	}
	return d
}
