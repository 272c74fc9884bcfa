// What stands on the canvas; every function runs in the page and is complete in itself. In Nodes 2.0 nodes are
// elements of the page, in the classic look they are drawn, and only text fields, notes and videos are elements.

// Of each node its box [x, y, width, height] as the frontend measures it, in the graph's own units.
export function nodes() {
  const { scale, offset } = app.canvas.ds
  const frame = document.querySelector('#graph-canvas').getBoundingClientRect()
  return app.graph._nodes.map((node) => {
    const rect = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect()
    const box = rect
      ? [
          (rect.x - frame.x) / scale - offset[0],
          (rect.y - frame.y) / scale - offset[1],
          rect.width / scale,
          rect.height / scale,
        ]
      : [...node.boundingRect]
    return { id: node.id, type: node.type, title: node.title, box }
  })
}

// How many times each node shows pictures or a clip; several pictures of one output are one grid.
export function media() {
  const PARTS = '.image-preview, .video-preview, img[alt="Live sampling preview"]'
  const WIDGETS = ['$$canvas-image-preview', '$$comfy_animation_preview', 'video-preview']
  const shown = {}
  for (const node of app.graph._nodes) {
    const element = document.querySelector(`[data-node-id="${node.id}"]`)
    shown[node.id] = element
      ? [...element.querySelectorAll(PARTS)].filter((part) => part.getBoundingClientRect().width > 24).length
      : (node.widgets ?? []).filter((widget) => WIDGETS.includes(widget.name)).length
  }
  return shown
}

// The zoom, and what the nodes take of the window, in its pixels.
export function view() {
  const { scale, offset } = app.canvas.ds
  const boxes = app.graph._nodes.map((node) => [...node.boundingRect])
  return {
    scale,
    left: Math.min(...boxes.map((b) => (b[0] + offset[0]) * scale)),
    top: Math.min(...boxes.map((b) => (b[1] + offset[1]) * scale)),
    right: Math.max(...boxes.map((b) => (b[0] + b[2] + offset[0]) * scale)),
    bottom: Math.max(...boxes.map((b) => (b[1] + b[3] + offset[1]) * scale)),
  }
}

// Of each note: how high its text is, how high the field that shows it, and how often it has inline code.
export function notes() {
  return [...document.querySelectorAll('.comfy-markdown, .widget-markdown')].map((field) => {
    const text = field.querySelector('.tiptap, .comfy-markdown-content') ?? field
    return { text: text.scrollHeight, field: field.clientHeight, code: text.querySelectorAll('code').length }
  })
}
