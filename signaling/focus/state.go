package focus

// A State is what a conference looks like to an operator. It holds no secrets and no names beyond the
// occupants' nicks.
type State struct {
	Participants       []ParticipantState `json:"participants"`
	Bridges            []BridgeState      `json:"bridges"`
	BridgeNotAvailable bool               `json:"bridge_not_available,omitempty"`
}

// ParticipantState is one occupant.
type ParticipantState struct {
	Nick   string `json:"nick"`
	Region string `json:"region,omitempty"`
	Family string `json:"family,omitempty"` // of the address that it came from
	Owner  bool   `json:"owner,omitempty"`
	Hidden bool   `json:"hidden,omitempty"`
	// Session is "asking" for features, "waiting" for others or a bridge, "allocating", "offered",
	// "active", or "uninvited" for good.
	Session   string `json:"session"`
	SID       string `json:"sid,omitempty"`
	Bridge    string `json:"bridge,omitempty"` // JID
	Rewriting bool   `json:"ssrc_rewriting"`
	Sources   int    `json:"sources"` // SSRCs signaled
	Restarts  int    `json:"restarts"`
}

// BridgeState is one bridge of the conference.
type BridgeState struct {
	JID       string `json:"jid"`
	ID        string `json:"id"` // as clients know it
	Region    string `json:"region,omitempty"`
	Version   string `json:"version,omitempty"`
	Reason    string `json:"reason,omitempty"` // why it was chosen
	Endpoints int    `json:"endpoints"`
}

// State describes the conference.
func (c *Conference) State() State {
	s := State{Participants: []ParticipantState{}, Bridges: []BridgeState{}, BridgeNotAvailable: c.noBridge}
	for _, p := range c.participants {
		x := ParticipantState{Nick: p.Nick, Region: p.Region, Family: p.Family, Owner: p.Owner, Hidden: p.Hidden, Restarts: p.restartCount, Session: "waiting"}
		switch {
		case p.session != nil:
			x.Session = p.session.state.String()
			x.SID, x.Bridge = p.session.sid, p.session.bridge.jid.String()
			x.Sources = len(p.session.sources.Audio.Sources) + len(p.session.sources.Video.Sources)
		case p.uninvited:
			x.Session = "uninvited"
		case p.features == nil:
			x.Session = "asking"
		}
		x.Rewriting = p.features != nil && p.features.rewriting
		s.Participants = append(s.Participants, x)
	}
	for _, b := range c.bridges {
		s.Bridges = append(s.Bridges, BridgeState{b.jid.String(), b.id, b.region, b.version, b.reason, len(b.endpoints)})
	}
	return s
}

func (s state) String() string {
	return [...]string{allocating: "allocating", offered: "offered", active: "active"}[s]
}
