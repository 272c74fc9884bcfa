// Runs in the page, in Nodes 2.0, whose nodes are the higher ones: a graph in API format becomes a workflow whose
// boxes have room in both looks.
//
// layout: {note, note_over, groups: [{title, color, columns: [[id, ...], ...]}], widths, heights, titles, models}.
// Groups stand side by side, each with its columns of nodes; the note stands over the first `note_over` of them.
// models: by node, one or several of {name, url, directory}, where the interface offers a download.
export async function arrange({ name, graph, layout }) {
  const WIDTH = 290, GAP = 34, PAD = 20, TITLE = 30, GROUP_TITLE = 44, BETWEEN = 26, SPARE = 20
  const COLOURS = { blue: '#3f789e', green: '#8A8', yellow: '#b58b2a', red: '#A88', cyan: '#8AA' }
  const GREEN = ['#232', '#353'], RED = ['#322', '#533'], BLACK = ['#222', '#000'] // as the host's templates have them
  const settle = () => new Promise((done) => setTimeout(done, 2500))

  app.loadApiJson(structuredClone(graph), name)
  await settle()
  const byId = (id) => app.graph._nodes_by_id[id] // of the graph as it is now: it is loaded anew below
  const placed = layout.groups.flatMap((group) => group.columns.flat()).sort()
  const known = app.graph._nodes.map((node) => String(node.id)).sort()
  if (placed.join() !== known.join()) throw new Error(`the layout places ${placed}, the graph has ${known}`)

  for (const id of placed) {
    const node = byId(id)
    if (layout.titles?.[id]) node.title = layout.titles[id]
    if (layout.models?.[id]) node.properties.models = [layout.models[id]].flat()
    if (node.type === 'UniVidEncodeDualPrompt') [node.color, node.bgcolor] = GREEN
    if (node.title === 'Negative prompt') [node.color, node.bgcolor] = RED
  }
  const note = LiteGraph.createNode('MarkdownNote')
  note.title = 'About this workflow'
  app.graph.add(note)
  note.widgets[0].value = layout.note
  ;[note.color, note.bgcolor] = BLACK

  // Each node as high as is wanted, or as `drawn` says that it is; a column is as wide as its widest.
  function size(drawn = () => 0) {
    for (const { columns } of layout.groups)
      for (const ids of columns) {
        const width = Math.max(...ids.map((id) => layout.widths?.[id] ?? WIDTH))
        for (const id of ids) {
          const node = byId(id)
          node.setSize([width, Math.max(node.computeSize()[1], layout.heights?.[id] ?? 0, drawn(id))])
        }
      }
  }
  const element = (id) => document.querySelector(`[data-node-id="${id}"]`)
  const height = (id) => Math.round(element(id).getBoundingClientRect().height / app.canvas.ds.scale) - TITLE

  function place() {
    const heightOf = (ids) => ids.reduce((sum, id) => sum + byId(id).size[1] + TITLE + GAP, -GAP)
    const widthOf = (ids) => byId(ids[0]).size[0]
    const groups = layout.groups.map((group) => ({
      ...group,
      width: group.columns.reduce((sum, ids) => sum + widthOf(ids) + GAP, -GAP) + 2 * PAD,
      height: Math.max(...group.columns.map(heightOf)) + GROUP_TITLE + PAD,
    }))
    const over = layout.note_over ?? 2
    const span = groups.slice(0, over).reduce((sum, group) => sum + group.width + BETWEEN, -BETWEEN)
    const above = byId(note.id)
    above.setSize([span, above.size[1]])
    above.pos = [0, TITLE]
    const under = TITLE + above.size[1] + BETWEEN
    let x = 0
    app.graph._groups.slice().forEach((group) => app.graph.remove(group))
    groups.forEach((group, index) => {
      const top = index < over ? under : 0
      const frame = new LiteGraph.LGraphGroup(group.title)
      frame.pos = [x, top]
      frame.size = [group.width, group.height]
      frame.color = COLOURS[group.color]
      app.graph.add(frame)
      let left = x + PAD
      for (const ids of group.columns) {
        let y = top + GROUP_TITLE
        for (const id of ids) {
          byId(id).pos = [left, y + TITLE]
          y += byId(id).size[1] + TITLE + GAP
        }
        left += widthOf(ids) + GAP
      }
      x += group.width + BETWEEN
    })
  }

  note.setSize([600, 60])
  size()
  place()
  await app.loadGraphData(app.graph.serialize()) // a graph without sizes is drawn higher, and nodes would stay so
  app.canvas.ds.scale = 0.4 // what is out of sight is not measured
  app.canvas.ds.offset = [300, 300]
  await settle()
  const text = element(note.id).querySelector('.comfy-markdown-content')
  byId(note.id).setSize([note.size[0], text.scrollHeight + SPARE])
  size(height)
  place()
  return app.graph.serialize()
}
