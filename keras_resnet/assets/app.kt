// implementation("com.google.ai.edge.litert:litert:1.4.0"); MODEL_FILE lies in src/main/assets
import android.content.Context
import android.graphics.Bitmap
import android.util.Base64
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipFile
import kotlin.math.abs
import org.json.JSONObject
import org.tensorflow.lite.Interpreter

class Classifier(context: Context) {
    private val file = File(context.cacheDir, "MODEL_FILE").also { copy ->
        context.assets.open("MODEL_FILE").use { from -> copy.outputStream().use { from.copyTo(it) } }
    }
    private val interpreter = Interpreter(file)
    private val inside = ZipFile(file) // labels, manifest and test stand behind the model
    val labels = text("labels.txt").trimEnd().lines()

    private fun text(name: String) = inside.getInputStream(inside.getEntry(name)).reader().readText()

    /** One score a class of HEIGHT x WIDTH RGB pixels as they are, three bytes each. */
    fun scores(rgb: ByteArray): FloatArray {
        val input = ByteBuffer.allocateDirect(INPUT_BYTES * rgb.size).order(ByteOrder.nativeOrder())
        for (byte in rgb) PUT_PIXEL
        val output = interpreter.getOutputTensor(0)
        val raw = ByteBuffer.allocateDirect(output.numBytes()).order(ByteOrder.nativeOrder())
        interpreter.run(input.rewind(), raw)
        raw.rewind()
        KOTLIN_STEPS
        return FloatArray(labels.size) { READ_SCORE }
    }

    fun scores(bitmap: Bitmap): FloatArray {
        val scaled = Bitmap.createScaledBitmap(bitmap, WIDTH, HEIGHT, true)
        val pixels = IntArray(WIDTH * HEIGHT).also { scaled.getPixels(it, 0, WIDTH, 0, 0, WIDTH, HEIGHT) }
        return scores(ByteArray(3 * pixels.size) { (pixels[it / 3] shr (16 - 8 * (it % 3))).toByte() })
    }

    fun selfTest(): String {
        val test = JSONObject(text("golden.json"))
        val (factor, width) = listOf("factor", "width").map(test::getInt)
        val pictures = test.getJSONArray("pictures")
        val start = System.nanoTime()
        val agreeing = (0 until pictures.length()).map(pictures::getJSONObject).count { picture ->
            val small = Base64.decode(picture.getString("pixels"), Base64.DEFAULT)
            val answer = scores(ByteArray(3 * HEIGHT * WIDTH) { i ->
                val (y, x) = Pair(i / 3 / WIDTH / factor, i / 3 % WIDTH / factor)
                small[3 * (y * width + x) + i % 3]
            })
            val classes = picture.getJSONArray("classes")
            answer.indices.maxBy { answer[it] } == classes.getInt(0) && (0 until classes.length()).all {
                val wanted = picture.getJSONArray("scores").getDouble(it)
                abs(answer[classes.getInt(it)] - wanted) <= test.getDouble("tolerance")
            }
        }
        val each = (System.nanoTime() - start) / 1e6 / pictures.length()
        return "this phone: $agreeing of ${pictures.length()} agree, %.1f ms".format(each)
    }
}
