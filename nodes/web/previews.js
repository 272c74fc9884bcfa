// In the classic look the frontend paints previews on the canvas, and a clip stands still there. A picture that moves
// it puts into the page instead, where it plays, by `animatedImages`: so that is true of a node that has a preview.
import { app } from '../../scripts/app.js'

const WIDGET = '$$comfy_animation_preview'
const HEIGHT = 220 // at least, as the frontend gives pictures on the canvas

app.registerExtension({
  name: 'UniVid.previews',
  beforeRegisterNodeDef(nodeType, { name }) {
    if (!name.startsWith('UniVid')) return
    Object.defineProperty(nodeType.prototype, 'animatedImages', {
      configurable: true,
      get() {
        return Boolean(this.unividAnimated || this.preview?.length)
      },
      set(value) {
        this.unividAnimated = value
      },
    })
    const draw = nodeType.prototype.onDrawBackground
    nodeType.prototype.onDrawBackground = function (...args) {
      draw?.apply(this, args)
      const widget = this.widgets?.find((widget) => widget.name === WIDGET)
      if (!widget || widget.options.getMinHeight) return
      widget.options.getMinHeight = () => HEIGHT
      this.setDirtyCanvas(true, true) // it grows where it has no room
    }
  },
})
